// A browser that is told what to do: one JSON object a line on standard input,
// one as the answer on standard output.
//
//     { do: "open", page, url, width, height, scheme, touch }
//     { do: "eval", page, js }            the value of an expression
//     { do: "wait", page, js, limit }     until it is true; ms
//     { do: "fill", page, at, text }      { do: "press", page, key }
//     { do: "click", page, at }           { do: "shot", page, path }
//     { do: "log", page }                 { errors, requests } so far
//     { do: "close", page }
//
// Answer: { value } or { error }.  argv[2] is the browser's path.

import { chromium } from 'playwright-core';
import { createInterface } from 'node:readline';

const browser = await chromium.launch({
    executablePath: process.argv[2],
    args: [ '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu' ] });
const pages = {};


// Not waitForFunction(): the pages' policy has no eval.

async function wait(c, p) {
    const end = Date.now() + (c.limit ?? 15000);
    let value;

    for (;;) {
        value = await p.evaluate(c.js);
        if (value) {
            return true;
        }
        if (Date.now() > end) {
            throw new Error('it is ' + value + ', the page says:\n'
                            + await p.evaluate('document.body.innerText'));
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}


const verbs = {
    async open(c) {
        const context = await browser.newContext({
            viewport: { width: c.width ?? 1280, height: c.height ?? 900 },
            colorScheme: c.scheme ?? 'light', hasTouch: !!c.touch });
        const p = await context.newPage();
        p.seen = { errors: [], requests: [] };
        p.on('console', (m) => {
            if (m.type() === 'error' || m.type() === 'warning') {
                p.seen.errors.push(m.text());
            }
        });
        p.on('pageerror', (e) => p.seen.errors.push(String(e)));
        p.on('request', (r) => p.seen.requests.push(r.url()));
        pages[c.page] = p;
        const r = await p.goto(c.url, { waitUntil: 'load' });
        return r.status();
    },
    eval: (c, p) => p.evaluate(c.js),
    wait,
    fill: (c, p) => p.fill(c.at, c.text).then(() => true),
    press: (c, p) => p.keyboard.press(c.key).then(() => true),
    click: (c, p) => p.click(c.at, { timeout: 5000 }).then(() => true),
    shot: (c, p) => p.screenshot({ path: c.path, fullPage: true })
                     .then(() => true),
    log: (c, p) => p.seen,
    close: (c, p) => p.context().close().then(() => true)
};


for await (const line of createInterface({ input: process.stdin })) {
    const c = JSON.parse(line);
    let answer;

    try {
        answer = { value: await verbs[c.do](c, pages[c.page]) ?? null };
    } catch (e) {
        answer = { error: String(e.message) };
    }
    console.log(JSON.stringify(answer));
}

await browser.close();
