// The controls of a request, and the request that they make.

export class Settings {
  constructor(form) {
    this.form = form;
    this.fields = form.elements;
  }

  get isChat() {
    return this.fields.kind.value === "chat";
  }

  get text() {
    return this.fields.text.value;
  }

  get roundsPerSecond() {
    return Number(this.fields.pace.value);
  }

  get speculates() {
    return this.fields.speculate.checked;
  }

  /** Path and body of the request. A seed that is not given is drawn here, so that the request can be sent again. */
  request(messages) {
    const { temperature, seed, maxTokens, width } = this.fields;
    const speculation = { enabled: this.speculates, report_rounds: true };
    if (width.value !== "") speculation.tree_width = Number(width.value);
    const body = {
      temperature: Number(temperature.value),
      seed: seed.value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(seed.value),
      max_tokens: Number(maxTokens.value),
      stream: true,
      speculation,
    };
    return this.isChat
      ? { path: "v1/chat/completions", text: this.text, body: { ...body, messages } }
      : { path: "v1/completions", text: this.text, body: { ...body, prompt: this.text } };
  }

  /** The controls as an earlier request had them. */
  restore({ text, body }) {
    this.fields.text.value = text;
    this.fields.temperature.value = body.temperature;
    this.fields.seed.value = body.seed;
    this.fields.maxTokens.value = body.max_tokens;
    this.fields.width.value = body.speculation.tree_width ?? "";
    this.fields.speculate.checked = body.speculation.enabled;
  }

  /** Chat needs a template of the target. */
  offerChat(isOffered) {
    const [, chat] = this.fields.kind;
    chat.disabled = !isOffered;
    document.getElementById("no-chat").textContent = isOffered ? "" : "the target has no chat template";
  }
}

/** The same request for the target alone. */
export function alone({ path, text, body }) {
  return { path, text, body: { ...body, speculation: { enabled: false, report_rounds: true } } };
}
