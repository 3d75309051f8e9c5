// The openai client, unmodified, against a real model: BASE_URL, MODEL.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: 'none',
                            maxRetries: 0 });
const model = process.env.MODEL;
const messages = [{ role: 'user', content: 'What is a falcon?' }];
const options = { model, messages, temperature: 0, max_tokens: 40 };


test('models', async () => {
    const ids = [];

    for await (const m of client.models.list()) {
        ids.push(m.id);
    }
    assert.deepEqual(ids, [model]);
});


test('chat: answer and stream are the same', async () => {
    const one = await client.chat.completions.create(options);
    const stream = await client.chat.completions.create({
        ...options, stream: true, stream_options: { include_usage: true },
    });
    let text = '', usage, finish;

    for await (const c of stream) {
        text += c.choices[0]?.delta.content ?? '';
        finish = c.choices[0]?.finish_reason ?? finish;
        usage = c.usage ?? usage;
    }

    assert.equal(text, one.choices[0].message.content);
    assert.equal(finish, one.choices[0].finish_reason);
    assert.equal(usage.completion_tokens, one.usage.completion_tokens);
    assert.equal(usage.prompt_tokens, one.usage.prompt_tokens);
    assert.ok(usage.completion_tokens > 0 && usage.completion_tokens <= 40);
});


test('chat: log-probabilities agree with the text', async () => {
    const r = await client.chat.completions.create({
        ...options, logprobs: true, top_logprobs: 3,
    });
    const list = r.choices[0].logprobs.content;

    for (const t of list) {
        assert.ok(t.logprob <= 0);
        assert.equal(t.top_logprobs.length, 3);
        assert.ok(t.top_logprobs[0].logprob >= t.top_logprobs[1].logprob);
        assert.equal(t.top_logprobs[0].logprob, t.logprob);
    }
    assert.ok(Buffer.from(list.flatMap((t) => t.bytes)).toString()
              .startsWith(r.choices[0].message.content));
});


test('chat: a stop string, choices, a bias', async () => {
    const plain = await client.chat.completions.create(options);
    const text = plain.choices[0].message.content;
    const stop = text.slice(3, 6);
    const cut = await client.chat.completions.create({ ...options, stop });

    assert.equal(cut.choices[0].message.content,
                 text.slice(0, text.indexOf(stop)));
    assert.equal(cut.choices[0].finish_reason, 'stop');

    const many = await client.chat.completions.create({
        ...options, temperature: 1, top_p: 1, seed: 7, n: 4,
    });
    assert.equal(many.choices.length, 4);
    assert.ok(new Set(many.choices.map((c) => c.message.content)).size > 1);
});


test('completions: scoring', async () => {
    const prompt = 'a falcon is a bird';
    const r = await client.completions.create({
        model, prompt, echo: true, logprobs: 1, max_tokens: 0,
    });
    const lp = r.choices[0].logprobs;

    assert.equal(r.choices[0].text, prompt);
    assert.equal(lp.tokens.length, lp.token_logprobs.length);
    assert.ok(lp.token_logprobs.slice(1).every((x) => x <= 0));
});


test('abort ends the stream', async () => {
    const stream = await client.completions.create({
        model, prompt: 'a falcon', max_tokens: 900, stream: true,
        ignore_eos: true,
    });
    let n = 0;

    for await (const c of stream) {
        if (c.choices[0]?.text && ++n === 3) {
            stream.controller.abort();
        }
    }
    assert.ok(n >= 3);
});
