// Which round's tree is shown: the newest one, until somebody looks at an earlier one.

import { inWords } from "./tree.js";

export class Picker {
  /** `onPick(round)` shows it. */
  constructor({ slider, earlier, later, says }, onPick) {
    this.slider = slider;
    this.says = says;
    this.onPick = onPick;
    slider.addEventListener("input", () => this.#pick(Number(slider.value)));
    earlier.addEventListener("click", () => this.#pick(this.at - 1));
    later.addEventListener("click", () => this.#pick(this.at + 1));
    this.clear();
  }

  clear() {
    this.rounds = [];
    this.at = 0;
    this.follows = true;
    this.slider.max = 0;
    this.says.textContent = "no round yet";
  }

  add(rounds) {
    this.rounds.push(...rounds);
    this.slider.max = this.rounds.length - 1;
    if (this.follows) this.#show(this.rounds.length - 1);
  }

  #pick(at) {
    if (!this.rounds.length) return;
    this.#show(Math.min(Math.max(at, 0), this.rounds.length - 1));
    this.follows = this.at === this.rounds.length - 1;
  }

  #show(at) {
    this.at = at;
    this.slider.value = at;
    this.says.textContent = `${at + 1} of ${this.rounds.length}. ${inWords(this.rounds[at])}`;
    this.onPick(this.rounds[at]);
  }
}
