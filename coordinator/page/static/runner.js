// One pane of text and the generation that writes into it.

import { Generation } from "./generation.js";
import { Ink } from "./ink.js";
import { Pace } from "./pace.js";

export class Runner {
  constructor(article, lastVoid = null) {
    this.article = article;
    this.title = article.querySelector("h3");
    this.figures = article.querySelector(".figures");
    this.ink = new Ink(article.querySelector(".text"), lastVoid);
    this.generation = null;
    this.pace = null;
  }

  /** Runs a request to its end; `onRounds(rounds)` is told what is shown, `onCut(words)` of cuts. Returns the generation. */
  async run(ask, { roundsPerSecond = 0, onRounds = () => {}, onCut }) {
    const generation = new Generation(ask);
    this.generation = generation;
    this.ink.begin(ask.text);
    this.figures.textContent = "";
    this.pace = new Pace(roundsPerSecond, (rounds) => {
      this.#show(rounds);
      onRounds(rounds);
    });
    await generation.run({ onRound: (round) => this.pace.add(round), onCut });
    if (generation.stopped) this.pace.flush();
    else await this.pace.drained();
    if (generation.finished) this.ink.finish(generation.finished.text);
    return generation;
  }

  /** Shows a generation that has ended. */
  review(generation) {
    this.generation = generation;
    this.ink.begin(generation.ask.text);
    this.figures.textContent = "";
    this.#show(generation.rounds);
    if (generation.finished) this.ink.finish(generation.finished.text);
  }

  stop() {
    if (!this.generation) return;
    this.generation.stop();
    this.pace?.flush();
  }

  #show(rounds) {
    this.ink.add(rounds);
    const last = rounds.at(-1);
    if (!last) return;
    const count = last.position + last.tokens.length - this.generation.rounds[0].position;
    this.figures.textContent = `${count} tokens in ${((last.began + last.at_ms) / 1000).toFixed(2)} s`;
  }
}
