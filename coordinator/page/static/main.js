// The page: what its controls do, and where what comes is shown.

import { Conversation } from "./conversation.js";
import { Lanes } from "./lanes.js";
import { Picker } from "./picker.js";
import { verdict } from "./race.js";
import { Readings } from "./readings.js";
import { Recent } from "./recent.js";
import { Runner } from "./runner.js";
import { keepToken, servedModel, wantsToken } from "./server.js";
import { Settings, alone } from "./settings.js";
import { offerThemes } from "./theme.js";
import { Tree } from "./tree.js";

const element = (id) => document.getElementById(id);

const settings = new Settings(element("request"));
const conversation = new Conversation(element("conversation"), element("forget"));
const raced = new Runner(element("with"), element("void"));
const target = new Runner(element("alone"));
const tree = new Tree(element("tree"));
const lanes = new Lanes(element("lane-names"), element("lane-scroll"));
const readings = new Readings(element("readings"), element("mode"), element("reasons"));
const recent = new Recent(element("recent"), review);
const picker = new Picker(
  { slider: element("round"), earlier: element("earlier"), later: element("later"), says: element("round-says") },
  (round) => {
    tree.show(round);
    raced.ink.mark(round.number);
  },
);

let isRunning = false;

function say(text) {
  element("status").textContent = text;
}

function complain(text) {
  element("error").textContent = text;
  element("error").hidden = !text;
}

function setRunning(running) {
  isRunning = running;
  element("run").disabled = element("race").disabled = running;
  element("stop").disabled = !running;
}

function clear(isRace) {
  complain("");
  for (const part of [tree, lanes, readings, picker]) part.clear();
  element("alone").hidden = !isRace;
  element("verdict").hidden = true;
  for (const part of [raced.title, raced.figures]) part.hidden = !isRace;
}

function show(rounds) {
  lanes.add(rounds);
  readings.add(rounds);
  picker.add(rounds);
}

async function generate(isRace) {
  if (isRunning) return;
  setRunning(true);
  clear(isRace);
  say(isRace ? "Racing …" : "Generating …");
  const ask = settings.request(conversation.with(settings.text));
  const onCut = say;
  const onRounds = (rounds) => {
    say(isRace ? "Racing …" : "Generating …");
    show(rounds);
  };
  try {
    const roundsPerSecond = isRace ? 0 : settings.roundsPerSecond;
    const [ours, theirs] = await Promise.all([
      raced.run(ask, { roundsPerSecond, onRounds, onCut }),
      isRace ? target.run(alone(ask), { onCut }) : null,
    ]);
    conclude(ours, theirs);
  } catch (error) {
    complain(`The page has a fault: ${error.message}. Load it again.`);
    throw error;
  } finally {
    setRunning(false);
  }
}

function conclude(ours, theirs) {
  complain(ours.error || theirs?.error || "");
  if (ours.finished) readings.finish(ours.finished);
  if (theirs) {
    element("verdict").textContent = verdict(ours, theirs);
    element("verdict").hidden = false;
    recent.add(theirs);
  }
  recent.add(ours);
  if (settings.isChat && ours.finished) {
    conversation.add(ours.ask.text, ours.text);
    settings.fields.text.value = "";
  }
  say(ending(ours));
}

function ending(generation) {
  if (generation.error) return "It failed.";
  if (generation.stopped) return `Stopped after ${generation.tokens.length} tokens.`;
  const cuts = generation.numCuts ? `, taken up again after ${generation.numCuts} cut${generation.numCuts > 1 ? "s" : ""}` : "";
  const why = generation.finished.reason === "length" ? "the limit" : "its own end";
  return `Done: ${generation.tokens.length} tokens with seed ${generation.ask.body.seed}, up to ${why}${cuts}.`;
}

function review(generation) {
  if (isRunning) return;
  clear(false);
  settings.restore(generation.ask);
  raced.review(generation);
  show(generation.rounds);
  if (generation.finished) readings.finish(generation.finished);
  say(ending(generation));
}

async function greet() {
  try {
    const { id, max_model_len: context, outrider } = await servedModel();
    const drafter = outrider.draft_model
      ? `drafts by ${outrider.draft_model}`
      : `no drafter: ${outrider.target_only_reason}`;
    element("models").textContent = `${id}, ${context} tokens of context; ${drafter}`;
    settings.offerChat(outrider.has_chat_template);
    element("door").hidden = true;
  } catch (error) {
    element("models").textContent = `The server does not say what it serves: ${error.message}`;
    element("door").hidden = !wantsToken(error);
  }
}

function enter(event) {
  event.preventDefault();
  keepToken(element("token").value);
  element("token").value = "";
  greet();
}

function stop() {
  raced.stop();
  target.stop();
}

element("door").addEventListener("submit", enter);
settings.form.addEventListener("submit", (event) => {
  event.preventDefault();
  generate(false);
});
element("race").addEventListener("click", () => generate(true));
element("stop").addEventListener("click", stop);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isRunning) stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate(false);
  }
});
offerThemes(element("theme"));
greet();
