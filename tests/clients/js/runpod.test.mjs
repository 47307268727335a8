// The published runpod-sdk against our server: only the base address is changed.
import assert from "node:assert/strict";
import test from "node:test";
import runpodSdk from "runpod-sdk";

const endpoint = runpodSdk("unused", { baseUrl: `${process.env.BATCHMUX_URL}/v2` }).endpoint("my-endpoint");
const picture = process.env.BATCHMUX_PICTURE;
const wishes = (seed) => ({ input: { prompt: "paint", image_base64: picture, seed } });

test("runSync gives the finished job", async () => {
  const job = await endpoint.runSync(wishes(3));
  assert.equal(job.status, "COMPLETED");
  assert.equal(job.succeeded, true);
  assert.equal(job.output.seed, 3);
  assert.ok(job.output.image.length > 100);
});

test("run, status and statusSync", async () => {
  const { id, status } = await endpoint.run(wishes(4));
  assert.equal(status, "IN_QUEUE");
  const done = await endpoint.statusSync(id, 20000);
  assert.equal(done.completed, true);
  assert.equal(done.output.seed, 4);
  assert.equal((await endpoint.status(id)).status, "COMPLETED");
});

test("stream ends with the output", async () => {
  const { id } = await endpoint.run(wishes(5));
  const pieces = [];
  for await (const piece of endpoint.stream(id)) pieces.push(piece);
  assert.equal(pieces.at(-1).output.seed, 5);
});

test("a failed job", async () => {
  const job = await endpoint.runSync({ input: { promt: "x" } });
  assert.equal(job.status, "FAILED");
  assert.equal(job.succeeded, false);
  assert.equal(typeof job.error, "string");
});

test("cancel, purgeQueue and health", async () => {
  const { id } = await endpoint.run(wishes(6));
  await endpoint.statusSync(id, 20000);
  assert.equal((await endpoint.cancel(id)).status, "COMPLETED");
  assert.deepEqual(await endpoint.purgeQueue(), { removed: 0, status: "completed" });
  const health = await endpoint.health();
  assert.equal(health.jobs.inQueue, 0);
  assert.equal(health.workers.ready, 1);
});
