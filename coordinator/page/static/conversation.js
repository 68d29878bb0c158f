// What has been said in a chat, which each request sends along.

export class Conversation {
  constructor(list, forget) {
    this.list = list;
    this.forget = forget;
    this.messages = [];
    forget.addEventListener("click", () => this.clear());
  }

  clear() {
    this.messages = [];
    this.#write();
  }

  /** The messages of a request that says `text`. */
  with(text) {
    return [...this.messages, { role: "user", content: text }];
  }

  /** A question was answered. */
  add(question, answer) {
    this.messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
    this.#write();
  }

  #write() {
    this.list.hidden = this.forget.hidden = !this.messages.length;
    this.list.replaceChildren(...this.messages.map(({ role, content }) => {
      const item = document.createElement("li");
      const who = document.createElement("b");
      who.textContent = role === "user" ? "You" : "Target";
      item.append(who, ` ${content}`);
      return item;
    }));
  }
}
