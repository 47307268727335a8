// The flat dialect with no client at all but fetch: what a page or a small service writes.
// Run: node flat.test.mjs http://127.0.0.1:8000

import assert from "node:assert/strict";
import test from "node:test";

const base = process.argv[2];

const post = (path, body) =>
  fetch(base + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });

test("a picture comes back as base64 with the facts beside it", async () => {
  const answer = await post("/runsync", {
    input: { prompt: "a fox", model: "dreamer", seed: 7, width: 64, height: 64 },
  });
  assert.equal(answer.status, 200);
  assert.match(answer.headers.get("x-request-id"), /^[0-9a-f]+$/);
  const { image, prompt, seed } = await answer.json();
  assert.deepEqual([prompt, seed], ["a fox", 7]);
  assert.equal(Buffer.from(image, "base64").subarray(1, 4).toString(), "PNG");
});

test("a misspelt field is refused by name", async () => {
  const answer = await post("/runsync", { input: { promt: "a fox" } });
  assert.equal(answer.status, 422);
  assert.match((await answer.json()).error, /did you mean 'prompt'/);
});
