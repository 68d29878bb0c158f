// What the page asks of its server, and what is told of failures.

/** Something that the server refuses, in its own words. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const TOKEN = "token";

/** Whether a failure means that the server wants to know who asks. */
export const wantsToken = (error) => error instanceof Refusal && error.status === 401;

/** From now on says with each request who asks; forgotten when the browser's tab is closed. */
export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token.trim());
}

/** The model that is served. Throws Refusal, or TypeError if the server cannot be reached. */
export async function servedModel() {
  const { data } = await (await ask("v1/models")).json();
  return data[0];
}

/**
 * Posts a request whose answer is a stream; with the id of the last event that came of it, what follows that event.
 * Throws as `servedModel` does, and AbortError.
 */
export function post(path, body, signal, lastEventId = "") {
  const headers = { "content-type": "application/json", ...(lastEventId ? { "last-event-id": lastEventId } : {}) };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Refusal(told?.error?.message ?? `the server answers with status ${response.status}`, response.status);
}
