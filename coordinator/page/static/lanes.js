// The time line: one lane per worker, and the wire between them, by the coordinator's clock.

import { drawn, lettered } from "./drawing.js";

const LANE = 30;
const BAR = 16;
const AXIS = 18;
const STEP_PIXELS = 34; // of a middling verify step
const SCALING_ROUNDS = 12; // until so many are known the scale is found anew
const TICK_PIXELS = 70;

export class Lanes {
  constructor(names, pane) {
    this.names = names;
    this.pane = pane;
    this.clear();
  }

  clear() {
    this.rounds = [];
    this.lanes = new Map();
    this.ends = new Map();
    this.scale = 0;
    this.lastTick = 0;
    this.svg = drawn("svg", { role: "img", "aria-label": "Draft steps, the wire, verify steps, waits and roll-backs over time" });
    this.pane.replaceChildren(this.svg);
    this.names.replaceChildren();
    this.pane.scrollLeft = 0;
  }

  add(rounds) {
    const isAtEnd = this.pane.scrollLeft + this.pane.clientWidth >= this.pane.scrollWidth - 40;
    let isStale = this.#rescale(rounds);
    const numLanes = this.lanes.size;
    for (const round of rounds) {
      for (const step of round.draft_steps) this.#lane(`draft ${step.drafter + 1}`, 0);
      this.#lane("wire", 1);
      this.#lane(`verify ${round.verifier + 1}`, 2);
      if (round.rolled_back) this.#lane("roll-backs", 3);
    }
    if (this.lanes.size > numLanes) isStale = true;
    const numDrawn = this.rounds.length;
    this.rounds.push(...rounds);
    if (isStale) this.#redraw();
    else this.rounds.slice(numDrawn).forEach((round) => this.#draw(round));
    this.#resize();
    if (isAtEnd) this.pane.scrollLeft = this.pane.scrollWidth;
  }

  #rescale(rounds) {
    if (this.rounds.length >= SCALING_ROUNDS) return false;
    const steps = [...this.rounds, ...rounds].map((round) => round.verify_ms);
    this.scale = STEP_PIXELS / Math.max(median(steps), 0.2);
    return true;
  }

  #lane(name, order) {
    if (this.lanes.has(name)) return;
    const sorted = [...this.lanes, [name, order]].sort((one, other) => one[1] - other[1] || (one[0] < other[0] ? -1 : 1));
    this.lanes = new Map(sorted);
  }

  #redraw() {
    this.svg.replaceChildren();
    this.ends.clear();
    this.lastTick = 0;
    this.names.replaceChildren(...[...this.lanes.keys()].map((name) => {
      const label = document.createElement("span");
      label.textContent = name;
      return label;
    }));
    for (const round of this.rounds) this.#draw(round);
  }

  #draw(round) {
    const at = round.began + round.at_ms;
    for (const step of round.draft_steps) {
      const name = `draft ${step.drafter + 1}`;
      const came = round.began + step.at_ms;
      const from = Math.max(came - step.draft_ms, this.ends.get(name) ?? 0);
      this.#bar(name, from, came, "draft", `${step.num_nodes} guesses in ${step.draft_ms.toFixed(1)} ms`);
      this.#sign("wire", came, "▾", "come draft");
      this.ends.set(name, came);
    }
    const name = `verify ${round.verifier + 1}`;
    const end = this.ends.get(name) ?? round.began;
    const began = Math.max(at - round.verify_ms, end);
    const waited = Math.max(began - round.wait_ms, end);
    if (waited > end) this.#bar("wire", end, waited, "gap", `${(waited - end).toFixed(1)} ms on the way`);
    this.#bar(name, waited, began, "wait", `waited ${round.wait_ms.toFixed(1)} ms`);
    const scored = round.nodes.filter((node) => node.scored).length;
    this.#bar(name, began, at, "verify", `round ${round.number + 1}: ${scored} scored in ${round.verify_ms.toFixed(1)} ms`);
    this.#sign("wire", at, "▴", "come verify");
    if (round.rolled_back) this.#sign("roll-backs", at, "✕", "rollback");
    this.ends.set(name, at);
  }

  #bar(name, from, to, kind, title) {
    if (to <= from) return;
    const y = AXIS + this.#index(name) * LANE + (LANE - BAR) / 2;
    const width = Math.max((to - from) * this.scale, 1);
    this.svg.append(drawn("rect", { x: from * this.scale, y, width, height: BAR, class: kind }, title));
  }

  #sign(name, at, sign, kind) {
    const y = AXIS + this.#index(name) * LANE + LANE / 2 + 5;
    this.svg.append(lettered(sign, at * this.scale, y, { class: kind, "text-anchor": "middle" }));
  }

  #index(name) {
    return [...this.lanes.keys()].indexOf(name);
  }

  #resize() {
    const width = Math.max(...this.ends.values(), 0) * this.scale + 24;
    const height = AXIS + this.lanes.size * LANE;
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", height);
    const step = nice(TICK_PIXELS / this.scale);
    for (; this.lastTick * this.scale < width; this.lastTick += step) {
      const x = this.lastTick * this.scale;
      this.svg.prepend(
        drawn("line", { x1: x, x2: x, y1: AXIS - 4, y2: height, class: "tick" }),
        lettered(`${Math.round(this.lastTick * 10) / 10} ms`, x + 3, AXIS - 6, { class: "tick" }),
      );
    }
  }
}

function median(values) {
  return [...values].sort((one, other) => one - other)[values.length >> 1];
}

/** The next longer one of 1, 2, 5, 10, 20, ... */
function nice(milliseconds) {
  const power = 10 ** Math.floor(Math.log10(milliseconds));
  return [1, 2, 5, 10].find((each) => each * power >= milliseconds) * power;
}
