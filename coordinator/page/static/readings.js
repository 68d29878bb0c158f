// What speculation did, in figures and in words.

const MODES = {
  speculative: "A drafter guessed from beginning to end, or until speculation was paused.",
  target_only: "The target decoded without a drafter.",
  degraded: "The drafter was lost on the way, and the target went on without one.",
};

/** Counts that grow with the rounds of a generation. */
export class Readings {
  constructor(list, mode, reasons) {
    this.list = list;
    this.mode = mode;
    this.reasons = reasons;
    this.clear();
  }

  clear() {
    this.counts = { rounds: 0, tokens: 0, scored: 0, accepted: 0, lookedUp: 0, rollbacks: 0, stale: 0, ms: 0 };
    this.mode.textContent = "";
    this.reasons.replaceChildren();
    this.#write();
  }

  add(rounds) {
    const counts = this.counts;
    for (const round of rounds) {
      counts.rounds++;
      counts.tokens += round.fresh.length;
      counts.scored += round.nodes.filter((node) => node.scored).length;
      counts.accepted += round.nodes.filter((node) => node.fate === "accepted").length;
      counts.lookedUp += round.tokens.filter((token) => token.origin === "prompt_lookup").length;
      counts.rollbacks += round.rolled_back;
      counts.stale += round.num_stale_nodes;
      counts.ms = round.began + round.at_ms;
    }
    this.mode.textContent = rounds.at(-1).mode_reason && `No drafter at present: ${rounds.at(-1).mode_reason}.`;
    this.#write();
  }

  finish({ speculation }) {
    const reason = speculation.mode_reason ? ` Why: ${speculation.mode_reason}.` : "";
    this.mode.textContent = MODES[speculation.mode] + reason;
    this.reasons.replaceChildren(...speculation.explanation.map((sentence) => {
      const item = document.createElement("li");
      item.textContent = sentence;
      return item;
    }));
  }

  #write() {
    const { rounds, tokens, scored, accepted, lookedUp, rollbacks, stale, ms } = this.counts;
    const figures = [
      ["tokens a second", ms ? (1000 * tokens / ms).toFixed(0) : "–"],
      ["tokens a round", rounds ? (tokens / rounds).toFixed(2) : "–"],
      ["acceptance", scored ? `${Math.round(100 * accepted / scored)} %` : "–"],
      ["guesses accepted", accepted],
      ["of them looked up", lookedUp],
      ["rounds", rounds],
      ["roll-backs", rollbacks],
      ["guesses too late", stale],
    ];
    this.list.replaceChildren(...figures.map(([name, value]) => {
      const pair = document.createElement("div");
      const term = document.createElement("dt");
      const figure = document.createElement("dd");
      term.textContent = name;
      figure.textContent = value;
      pair.append(term, figure);
      return pair;
    }));
  }
}
