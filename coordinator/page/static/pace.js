// How fast rounds are shown: as they come, in one go per frame, or slower than they come.

export class Pace {
  /** `show(rounds)` is given some rounds at a time, at most `perSecond` in a second; 0 is as they come. */
  constructor(perSecond, show) {
    this.perSecond = perSecond;
    this.show = show;
    this.waiting = [];
    this.timer = null;
    this.emptied = null;
  }

  add(round) {
    this.waiting.push(round);
    if (this.timer === null) this.#schedule(0);
  }

  /** Resolves when all has been shown. */
  drained() {
    return new Promise((resolve) => {
      this.emptied = resolve;
      if (this.timer === null) resolve();
    });
  }

  /** Shows what waits at once. */
  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    if (this.waiting.length) this.show(this.waiting.splice(0));
    this.emptied?.();
  }

  #schedule(milliseconds) {
    this.timer = setTimeout(() => {
      this.timer = null;
      this.show(this.waiting.splice(0, this.perSecond ? 1 : this.waiting.length));
      if (this.waiting.length) this.#schedule(1000 / this.perSecond);
      else this.emptied?.();
    }, milliseconds || 16);
  }
}
