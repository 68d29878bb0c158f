// Server-sent events of a response's body: their ids, and the JSON that they carry.

/** Yields `{ id, value }` of each event; ends at [DONE]. Throws CutError if the stream ends before, TypeError if it breaks. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new CutError("the stream ended early");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n");
        const field = (name) => lines.filter((line) => line.startsWith(name)).map((line) => line.slice(name.length)).join("\n");
        const data = field("data: ");
        if (data === "[DONE]") return;
        if (data) yield { id: field("id: "), value: JSON.parse(data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The connection was lost. */
export class CutError extends Error {}
