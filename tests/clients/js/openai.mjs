// OpenAI's client for JavaScript against a server: node openai.mjs BASE_URL SCENARIO
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const png = (await client.images.generate({ model: "artist", prompt: "x", size: "96x64" })).data[0].b64_json;
const file = () => toFile(Buffer.from(png, "base64"), "in.png", { type: "image/png" });
const isPng = (text) => assert.equal(Buffer.from(text, "base64").subarray(1, 4).toString(), "PNG");

const scenarios = {
  async generation() {
    const answer = await client.images.generate({ model: "artist", prompt: "x", size: "128x96", n: 2, seed: 7 });
    assert.equal(answer.data.length, 2);
    answer.data.forEach((one) => isPng(one.b64_json));
    assert.deepEqual([answer.size, answer.data[1].seed], ["128x96", 8]);
  },
  async edit() {
    const answer = await client.images.edit({ model: "painter", image: await file(), prompt: "night" });
    assert.equal(answer.size, "96x64");
    const several = await client.images.edit({ image: [await file(), await file()], prompt: "night" });
    isPng(several.data[0].b64_json);
  },
  async url() {
    const answer = await client.images.generate({ prompt: "x", size: "64x64", response_format: "url" });
    const fetched = await fetch(answer.data[0].url);
    assert.equal(fetched.headers.get("content-type"), "image/png");
  },
  async stream() {
    const types = [];
    const asked = { model: "painter", image: await file(), prompt: "x", stream: true, partial_images: 2 };
    for await (const event of await client.images.edit(asked)) {
      isPng(event.b64_json);
      types.push(event.type);
    }
    assert.deepEqual(types, ["image_edit.partial_image", "image_edit.partial_image", "image_edit.completed"]);
  },
  async errors() {
    const wrong = { model: "artist", prompt: "x", output_format: "gif" };
    await assert.rejects(client.images.generate(wrong), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      return error.param === "output_format" && Boolean(error.requestID);
    });
    await assert.rejects(client.images.generate({ model: "nobody", prompt: "x" }), OpenAI.NotFoundError);
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.deepEqual(ids, ["painter", "artist", "dreamer"]);
    assert.equal((await client.models.retrieve("org/painter")).id, "org/painter");
  },
};

await scenarios[process.argv[3]]();
console.log("ok");
