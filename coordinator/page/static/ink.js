// The text as it grows, each token in the ink of where it came from, and the guesses that are void flashing past.

import { visible } from "./token.js";

const NAMES = {
  accepted: "accepted: a drafter guessed it",
  prompt_lookup: "looked up in what the text repeats",
  recovered: "recovered: the target's, in a wrong guess's place",
  bonus: "bonus: the target's, after right guesses",
  target: "the target's, with no guess at hand",
};

const FLASH_MS = 900;

export class Ink {
  /** Writes into the `pane`; `lastVoid` names the guesses that were rolled back last, for those who see no flash. */
  constructor(pane, lastVoid = null) {
    this.pane = pane;
    this.lastVoid = lastVoid;
    this.ghost = document.createElement("s");
    this.ghost.className = "ghost";
    this.ghost.setAttribute("aria-hidden", "true");
    this.clearing = null;
  }

  begin(prompt) {
    const given = document.createElement("span");
    given.className = "prompt";
    given.textContent = prompt;
    this.pane.replaceChildren(given, this.ghost);
    this.ghost.textContent = "";
    if (this.lastVoid) this.lastVoid.textContent = "none yet";
  }

  add(rounds) {
    const isAtEnd = this.pane.scrollHeight - this.pane.scrollTop - this.pane.clientHeight < 40;
    const added = document.createDocumentFragment();
    for (const round of rounds) {
      for (const token of round.fresh) added.append(this.#token(token, round.number));
    }
    this.ghost.before(added);
    const voided = rounds.filter((round) => round.rolled_back).map(voidPath).findLast((path) => path.length);
    if (voided) this.#flash(voided);
    if (isAtEnd) this.pane.scrollTop = this.pane.scrollHeight;
  }

  /** Text that was held back to the end. */
  finish(text) {
    this.ghost.before(text);
  }

  /** Shows which tokens a round brought. */
  mark(number) {
    for (const each of this.pane.querySelectorAll(".now")) each.classList.remove("now");
    for (const each of this.pane.querySelectorAll(`[data-round="${number}"]`)) each.classList.add("now");
  }

  #token(token, number) {
    const span = document.createElement("span");
    span.className = token.origin;
    span.dataset.round = number;
    span.title = NAMES[token.origin];
    span.textContent = token.text;
    return span;
  }

  #flash(path) {
    const text = path.map((node) => node.text).join("");
    this.ghost.textContent = text;
    this.ghost.classList.remove("flash");
    void this.ghost.offsetWidth; // begins the animation anew
    this.ghost.classList.add("flash");
    clearTimeout(this.clearing);
    this.clearing = setTimeout(() => { this.ghost.textContent = ""; }, FLASH_MS);
    if (this.lastVoid) this.lastVoid.textContent = visible(text);
  }
}

/** The likeliest of the guesses that a round voided, from its beginning. */
function voidPath(round) {
  const path = [];
  let parent = 0;
  for (;;) {
    const kept = round.nodes.findIndex((node) => node.parent === parent && (node.fate === "accepted" || node.fate === "foreseen"));
    if (kept < 0) break;
    parent = kept + 1;
  }
  for (;;) {
    const below = round.nodes.map((node, index) => ({ ...node, number: index + 1 }))
      .filter((node) => node.parent === parent && node.fate === "dropped");
    if (!below.length) return path;
    const best = below.reduce((one, other) => (other.log_prob > one.log_prob ? other : one));
    path.push(best);
    parent = best.number;
  }
}
