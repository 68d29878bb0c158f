// The speculation tree of one round, as it stood when the verdict came, and what became of it.

import { drawn, lettered } from "./drawing.js";
import { visible } from "./token.js";

const NODES_MAX = 48; // more are not told apart; the likeliest are drawn
const CHARACTERS_MAX = 14;
const ROW = 30;
const HEIGHT = 20;
const GAP = 26;
const LETTER = 7.3;

const FATES = {
  accepted: "scored and accepted",
  foreseen: "the target's own choice, guessed beforehand",
  live: "still to be decided",
  dropped: "void: the target chose otherwise",
  recovered: "recovered: the target's choice, which nobody had guessed",
  bonus: "bonus: the target's own, after right guesses",
  target: "the target's, with no guess at hand",
};

export class Tree {
  constructor(pane) {
    this.pane = pane;
  }

  clear() {
    this.pane.replaceChildren();
  }

  show(round) {
    const root = pruned(round);
    const levels = [];
    place(root, 0, { row: 0 }, levels);
    const lefts = [];
    let left = 6;
    for (const [depth, width] of levels.entries()) {
      lefts[depth] = left;
      left += width + GAP;
    }
    const height = Math.max(...all(root).map((node) => node.row)) * ROW + ROW + 4;
    const svg = drawn("svg", { width: left, height, role: "img", "aria-label": inWords(round) });
    const lines = drawn("g");
    const boxes = drawn("g");
    for (const node of all(root)) {
      node.x = lefts[node.depth];
      node.y = node.row * ROW + 14;
      if (node.above) lines.append(line(node));
      boxes.append(box(node));
    }
    svg.append(lines, boxes);
    const numLeftOut = round.nodes.length - all(root).filter((node) => node.number).length;
    this.pane.replaceChildren(svg);
    if (numLeftOut > 0) {
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = `and ${numLeftOut} less likely guesses`;
      this.pane.append(note);
    }
  }
}

/** What a round's tree says, in a sentence. */
export function inWords(round) {
  const count = (holds) => round.nodes.filter(holds).length;
  const accepted = count((node) => node.fate === "accepted");
  const scored = count((node) => node.scored);
  const said = `Round ${round.number + 1}: ${round.nodes.length} guesses, ${scored} scored, ${accepted} accepted`;
  return round.rolled_back ? `${said}, then a roll-back` : said;
}

/** The root with what is worth drawing below it: what was kept or scored first, then what is likeliest. */
function pruned(round) {
  const root = { text: "", fate: "root", depth: 0, below: [], chance: 0 };
  const nodes = round.nodes.map((node, index) => ({ ...node, number: index + 1, below: [] }));
  for (const node of nodes) {
    node.above = node.parent ? nodes[node.parent - 1] : root;
    node.chance = node.above.chance + node.log_prob;
  }
  const rank = (node) => (isKept(node) ? 2 : 0) + (node.scored ? 1 : 0);
  const best = [...nodes].sort((one, other) => rank(other) - rank(one) || other.chance - one.chance).slice(0, NODES_MAX);
  const drawable = new Set([root]);
  for (const node of best) {
    for (let each = node; !drawable.has(each); each = each.above) drawable.add(each);
  }
  for (const node of nodes) if (drawable.has(node)) node.above.below.push(node);
  addNext(root, round);
  return root;
}

/** The token that the target added, if it was no guess. */
function addNext(root, round) {
  let end = root;
  let length = 0;
  for (let kept; (kept = end.below.find(isKept)); end = kept) length++;
  const next = round.tokens[length];
  if (next) end.below.unshift({ ...next, fate: next.origin, above: end, below: [], log_prob: 0 });
}

function isKept(node) {
  return node.fate === "accepted" || node.fate === "foreseen";
}

function place(node, depth, next, levels) {
  node.depth = depth;
  node.label = depth ? visible(node.text, CHARACTERS_MAX) || "∅" : "text";
  node.width = [...node.label].length * LETTER + 12;
  levels[depth] = Math.max(levels[depth] ?? 0, node.width);
  node.below.sort((one, other) => isKept(other) - isKept(one) || other.log_prob - one.log_prob);
  node.row = next.row;
  for (const [index, each] of node.below.entries()) {
    if (index) next.row++;
    place(each, depth + 1, next, levels);
  }
}

function all(node) {
  return [node, ...node.below.flatMap(all)];
}

function line({ above, x, y, log_prob, fate }) {
  const from = above.x + above.width;
  const middle = from + (x - from) / 2;
  const path = `M${from} ${above.y}C${middle} ${above.y} ${middle} ${y} ${x} ${y}`;
  return drawn("path", { d: path, class: `edge ${fate}`, "stroke-width": 1 + 3 * Math.exp(log_prob) });
}

function box(node) {
  const classes = ["node", node.fate, node.scored && "scored", node.prompt_lookup && "looked-up"].filter(Boolean);
  const chance = node.log_prob < 0 ? `, ${Math.round(100 * Math.exp(node.log_prob))} % by its drafter` : "";
  const source = node.prompt_lookup ? ", looked up" : "";
  const group = drawn("g", { class: classes.join(" ") }, `${node.label}: ${FATES[node.fate] ?? "the text so far"}${source}${chance}`);
  group.append(
    drawn("rect", { x: node.x, y: node.y - HEIGHT / 2, width: node.width, height: HEIGHT, rx: 3 }),
    lettered(node.label, node.x + 6, node.y + 4),
  );
  return group;
}
