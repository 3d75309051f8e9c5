// The openai client, unmodified, against the scripted engine: BASE_URL.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const baseURL = process.env.BASE_URL;
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const model = process.env.MODEL ?? 'scripted';
const user = (content) => [{ role: 'user', content }];
const words = (n, w = 'w') =>
    Array.from({ length: n }, (_, i) => w + (i + 1)).join(' ');


test('models: list and retrieve', async () => {
    const ids = [];

    for await (const m of client.models.list()) {
        assert.equal(m.object, 'model');
        assert.equal(typeof m.created, 'number');
        ids.push(m.id);
    }

    assert.ok(ids.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve('absent'),
                         OpenAI.NotFoundError);
});


test('chat: one answer', async () => {
    const r = await client.chat.completions.create({
        model, messages: user('script: tokens=12'), temperature: 0,
    });

    assert.match(r.id, /^chatcmpl-/);
    assert.equal(r.object, 'chat.completion');
    assert.equal(r.model, model);
    assert.equal(r.choices.length, 1);
    assert.equal(r.choices[0].message.role, 'assistant');
    assert.equal(r.choices[0].message.content.trim(), words(12));
    assert.equal(r.choices[0].finish_reason, 'stop');
    assert.equal(r.usage.completion_tokens, 12);
    assert.equal(r.usage.total_tokens, r.usage.prompt_tokens + 12);
});


test('chat: stream with usage', async () => {
    const stream = await client.chat.completions.create({
        model,
        messages: user('script: tokens=40 delay=1 cached=3 prompt_tokens=9'),
        stream: true, stream_options: { include_usage: true },
    });
    const ids = new Set();
    let text = '', finish, usage, role, after = 0;

    for await (const c of stream) {
        ids.add(c.id);
        assert.equal(c.object, 'chat.completion.chunk');
        if (finish !== undefined) {
            after++;
        }
        if (c.choices.length > 0) {
            role ??= c.choices[0].delta.role;
            text += c.choices[0].delta.content ?? '';
            finish = c.choices[0].finish_reason ?? finish;
            assert.equal(c.usage, null);
        } else {
            usage = c.usage;
        }
    }

    assert.equal(ids.size, 1);
    assert.equal(role, 'assistant');
    assert.equal(text.trim(), words(40));
    assert.equal(finish, 'stop');
    assert.equal(after, 1);
    assert.equal(usage.completion_tokens, 40);
    assert.equal(usage.prompt_tokens, 9);
    assert.equal(usage.prompt_tokens_details.cached_tokens, 3);
    assert.equal(usage.prompt_cache_hit_tokens, 3);
    assert.equal(usage.prompt_cache_miss_tokens, 6);
});


test('chat: length, reasoning, text parts', async () => {
    const r = await client.chat.completions.create({
        model, max_completion_tokens: 9,
        messages: [
            { role: 'system', content: 'be brief' },
            { role: 'user',
              content: [{ type: 'text',
                          text: 'script: reasoning=4 tokens=20' }] },
        ],
    });

    assert.equal(r.choices[0].finish_reason, 'length');
    assert.equal(r.choices[0].message.reasoning_content.trim(), words(4, 'r'));
    assert.equal(r.choices[0].message.content.trim(), words(5));
    assert.equal(r.usage.completion_tokens_details.reasoning_tokens, 4);
});


test('chat: log-probabilities', async () => {
    const r = await client.chat.completions.create({
        model, messages: user('script: text=%C3%A9%F0%9F%98%80a'),
        logprobs: true, top_logprobs: 3,
    });
    const content = r.choices[0].logprobs.content;

    assert.equal(r.choices[0].message.content, 'é😀a');
    assert.ok(content.length >= 3);
    for (const t of content) {
        assert.equal(typeof t.logprob, 'number');
        assert.ok(t.logprob <= 0);
        assert.ok(Array.isArray(t.bytes));
        assert.equal(t.top_logprobs.length, 3);
    }
    assert.deepEqual(Buffer.from(content.flatMap((t) => t.bytes)),
                     Buffer.from('é😀a'));
});


test('completions: one, several, echo, scoring', async () => {
    const one = await client.completions.create({ model, prompt: 'a b c' });
    assert.equal(one.object, 'text_completion');
    assert.equal(one.choices[0].text.trim(), 'a b c');

    const many = await client.completions.create({
        model, prompt: ['a b', 'c d'], n: 2,
    });
    assert.deepEqual(many.choices.map((c) => c.index), [0, 1, 2, 3]);
    assert.deepEqual(many.choices.map((c) => c.text.trim()),
                     ['a b', 'a b', 'c d', 'c d']);

    const ids = await client.completions.create({ model, prompt: [5, 6, 7] });
    assert.match(ids.choices[0].text, /t5 t6 t7/);

    const score = await client.completions.create({
        model, prompt: 'a b c d', echo: true, logprobs: 2, max_tokens: 0,
    });
    const lp = score.choices[0].logprobs;
    assert.equal(score.choices[0].text, 'a b c d');
    assert.equal(lp.tokens.length, lp.token_logprobs.length);
    assert.equal(lp.tokens.length, lp.text_offset.length);
    assert.equal(lp.token_logprobs[0], null);
    assert.equal(lp.tokens.join(''), 'a b c d');
    assert.equal(score.usage.completion_tokens, 0);
});


test('completions: stream', async () => {
    const stream = await client.completions.create({
        model, prompt: 'script: tokens=20', stream: true, max_tokens: 30,
    });
    let text = '', finish;

    for await (const c of stream) {
        assert.equal(c.object, 'text_completion');
        text += c.choices[0]?.text ?? '';
        finish = c.choices[0]?.finish_reason ?? finish;
    }

    assert.equal(text.trim(), words(20));
    assert.equal(finish, 'stop');
});


test('abort ends the stream', async () => {
    const stream = await client.chat.completions.create({
        model, messages: user('script: tokens=100000 delay=5'), stream: true,
    });
    let n = 0;

    for await (const c of stream) {
        if (c.choices[0]?.delta.content && ++n === 3) {
            stream.controller.abort();
        }
    }

    assert.ok(n >= 3 && n < 1000);
});


test('error classes', async () => {
    const bad = (extra) => client.chat.completions.create({
        model, messages: user('x'), ...extra,
    });
    const fails = async (promise, type, status, param) => {
        const e = await promise.then(() => null, (err) => err);
        assert.ok(e instanceof type, `${e?.constructor.name}: ${e?.message}`);
        assert.equal(e.status, status);
        assert.equal(typeof e.error.message, 'string');
        assert.equal(typeof e.error.type, 'string');
        if (param !== undefined) {
            assert.equal(e.param, param);
        }
        assert.ok(e.headers.get('x-request-id'));
    };

    await fails(bad({ temperature: 9 }), OpenAI.BadRequestError, 400,
                'temperature');
    await fails(bad({ messages: 'x' }), OpenAI.BadRequestError, 400,
                'messages');
    await fails(bad({ tools: [{ type: 'function', function: { name: 'f' } }] }),
                OpenAI.BadRequestError, 400, 'tools');
    await fails(bad({ response_format: { type: 'json_object' } }),
                OpenAI.BadRequestError, 400, 'response_format');
    await fails(bad({ model: 'absent' }), OpenAI.NotFoundError, 404, 'model');
    await fails(bad({ messages: user('script: error=length') }),
                OpenAI.BadRequestError, 400);
    await fails(bad({ messages: user('script: error=queue retry=3') }),
                OpenAI.RateLimitError, 429);
    await fails(bad({ messages: user('script: error=internal') }),
                OpenAI.InternalServerError, 500);
    await fails(bad({ messages: user('script: error=timeout') }),
                OpenAI.InternalServerError, 503);
});


test('an error inside a stream raises', async () => {
    const stream = await client.chat.completions.create({
        model, messages: user('script: tokens=50 delay=5 fail_after=5'),
        stream: true,
    });
    let n = 0;

    await assert.rejects(async () => {
        for await (const c of stream) {
            n += c.choices[0]?.delta.content ? 1 : 0;
        }
    }, OpenAI.APIError);
    assert.ok(n >= 1);
});


test('retries follow Retry-After', async () => {
    const retrying = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 1 });
    const start = Date.now();

    await assert.rejects(retrying.chat.completions.create({
        model, messages: user('script: error=queue retry=1'),
    }), OpenAI.RateLimitError);
    assert.ok(Date.now() - start >= 900);
});
