// How a token is written where its blanks must be seen.

const SIGNS = { "\n": "⏎", "\t": "⇥", "\r": "␍", " ": "·" };

/** The text with signs for its blanks, cut to `most` characters. */
export function visible(text, most = 60) {
  const characters = [...text];
  const shown = characters.slice(0, most).map((each) => SIGNS[each] ?? each).join("");
  return characters.length > most ? `${shown}…` : shown;
}
