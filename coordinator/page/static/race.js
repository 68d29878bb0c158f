// A generation beside the target alone: who ends first, and whether both wrote the same.

/** What is to be said at the end of a race between two generations of one seed. */
export function verdict(raced, alone) {
  if (raced.error || alone.error) return `No result: ${raced.error || alone.error}`;
  if (raced.stopped || alone.stopped) return "Stopped before the end.";
  const at = raced.tokens.findIndex((token, index) => token.token_id !== alone.tokens[index]?.token_id);
  if (at >= 0 || raced.tokens.length !== alone.tokens.length || raced.text !== alone.text) {
    const place = at >= 0 ? at + 1 : Math.min(raced.tokens.length, alone.tokens.length) + 1;
    return `The texts differ from token ${place} on. They may where a target is not batch invariant; otherwise report it.`;
  }
  const count = raced.tokens.length;
  const same = `Identical: ${count === 1 ? "the one token is" : `all ${count} tokens are`} the same.`;
  const quick = seconds(raced);
  const slow = seconds(alone);
  return quick <= slow
    ? `${same} With speculation they took ${quick.toFixed(2)} s, by the target alone ${slow.toFixed(2)} s: ${(slow / quick).toFixed(1)} times as long.`
    : `${same} The target alone was sooner: ${slow.toFixed(2)} s against ${quick.toFixed(2)} s. Below stands why.`;
}

/** How long a generation took by the coordinator's clock, and by the browser's up to its last cut. */
function seconds(generation) {
  const { began, at_ms: atMs } = generation.rounds.at(-1);
  return (began + atMs) / 1000;
}
