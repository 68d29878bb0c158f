// One generation: its stream, from the first round to the end, through cuts of the connection.

import { CutError, events } from "./event_stream.js";
import { Refusal, post } from "./server.js";

const WAITS_MS = [250, 1000, 2000, 4000, 8000, 15000];

export class Generation {
  /** `ask` is what Settings make of the controls: `path` and `body`, with a seed. */
  constructor(ask) {
    this.ask = ask;
    this.tokens = [];
    this.rounds = [];
    this.lastEventId = "";
    this.finished = null;
    this.error = "";
    this.started = 0;
    this.seconds = 0;
    this.numCuts = 0;
    this.stopped = false;
    this.abort = new AbortController();
  }

  get text() {
    return this.tokens.map((token) => token.text).join("") + (this.finished?.text ?? "");
  }

  get isOver() {
    return this.finished !== null || this.error !== "" || this.stopped;
  }

  stop() {
    this.stopped = !this.isOver;
    this.abort.abort();
  }

  /** Calls `onRound(round)` and `onCut(words)` as things come. Returns at the end; `error` has what went wrong. */
  async run({ onRound, onCut }) {
    this.started = performance.now();
    for (let attempt = 0; !this.isOver; attempt++) {
      const numBefore = this.tokens.length;
      try {
        await this.#follow(onRound);
      } catch (error) {
        if (this.stopped) break;
        if (error instanceof Refusal) this.error = error.message;
        else if (!(error instanceof CutError || error instanceof TypeError)) throw error;
        else if (attempt >= WAITS_MS.length) this.error = "The connection is lost, and the server is not reached again.";
        else {
          if (this.tokens.length > numBefore) attempt = 0;
          this.numCuts++;
          onCut(this.tokens.length
            ? "The connection was cut. The answer is taken up again where it broke off …"
            : "The server is not reached. It is asked again …");
          await this.#pause(WAITS_MS[attempt]);
        }
      }
    }
    this.seconds = (performance.now() - this.started) / 1000;
  }

  /** Of the answer what follows the last event that came. A round that was cut is reported again as a whole. */
  async #follow(onRound) {
    const began = performance.now() - this.started;
    const response = await post(this.ask.path, this.ask.body, this.abort.signal, this.lastEventId);
    for await (const { id, value: chunk } of events(response)) {
      if (chunk.error) throw new Refusal(chunk.error.message);
      this.lastEventId = id;
      const choice = chunk.choices[0];
      if (choice?.finish_reason) this.finished = { ...chunk, text: choice.text ?? "", reason: choice.finish_reason };
      const round = chunk.outrider?.round;
      if (!round) continue;
      const end = this.rounds.length ? this.rounds[0].position + this.tokens.length : round.position;
      const fresh = { ...round, number: this.rounds.length, began, fresh: round.tokens.slice(end - round.position) };
      this.tokens.push(...fresh.fresh);
      this.rounds.push(fresh);
      onRound(fresh);
    }
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      addEventListener("online", resolve, { once: true });
      this.abort.signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
    });
  }
}
