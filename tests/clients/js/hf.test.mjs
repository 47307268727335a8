// Hugging Face's client for JavaScript against a server whose address stands in BATCHMUX_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import { InferenceClient } from "@huggingface/inference";

const base = process.env.BATCHMUX_URL;
const picture = new Blob([Buffer.from(process.env.BATCHMUX_PICTURE, "base64")], { type: "image/png" });
const at = (task, model) => new InferenceClient("hf_x", { endpointUrl: `${base}/hf/${task}?model=${model}` });

async function sizeOf(blob) {
  const bytes = Buffer.from(await blob.arrayBuffer());
  assert.equal(bytes.subarray(1, 4).toString(), "PNG");
  return [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
}

test("text to image", async () => {
  const parameters = { negative_prompt: "fog", width: 96, height: 64, num_inference_steps: 7, seed: 11 };
  const blob = await at("text-to-image", "artist").textToImage({ inputs: "a lighthouse", parameters });
  assert.deepEqual(await sizeOf(blob), [96, 64]);
});

test("text to image without parameters", async () => {
  const blob = await at("text-to-image", "artist").textToImage({ inputs: "a lighthouse" });
  assert.equal(blob.type, "image/png");
});

test("image to image", async () => {
  const parameters = { prompt: "make it night", target_size: { width: 192, height: 128 }, strength: 0.5 };
  const blob = await at("image-to-image", "artist").imageToImage({ inputs: picture, parameters });
  assert.deepEqual(await sizeOf(blob), [192, 128]);
});

test("a bare picture", async () => {
  const blob = await at("image-to-image", "painter").imageToImage({ inputs: picture });
  assert.equal(blob.type, "image/png");
});

test("a refusal shows its sentence", async () => {
  const parameters = { num_inference_steps: 1000 };
  const refused = at("text-to-image", "artist").textToImage({ inputs: "x", parameters });
  await assert.rejects(refused, (error) => {
    assert.match(error.message, /num_inference_steps 1000 is outside 1 to 100/);
    assert.equal(error.httpResponse.status, 422);
    return true;
  });
});
