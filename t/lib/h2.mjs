// HTTP/2 over TLS for the tests: runs the job in a JSON file, argv[2], and
// prints one JSON result.
//
//     port, uri, body       POST body (an object) to uri
//     streams               so many at once on one session (1)
//     headers               more request headers
//     method                POST
//     requests              instead: a list of such jobs, on one session
//     abort_after           reset each stream after so many data events
//     stall                 stop reading after the first data, for so many ms
//
// Result: a list of { status, headers, text, events, ended, aborted, error,
// header_ms, first_ms, end_ms, data_ms }; times count from the request, data_ms
// is a list.

import { readFileSync } from 'node:fs';
import http2 from 'node:http2';

const job = JSON.parse(readFileSync(process.argv[2]));
const session = http2.connect(`https://127.0.0.1:${job.port}`,
                              { rejectUnauthorized: false,
                                servername: 'localhost' });


function one(job) {
    return new Promise((resolve) => {
        const start = performance.now();
        const ms = () => Math.round(performance.now() - start);
        const body = typeof job.body === 'string' ? job.body
                                                  : JSON.stringify(job.body);
        const r = { status: 0, headers: {}, text: '', events: 0,
                    ended: false, aborted: false, data_ms: [] };
        const method = job.method ?? 'POST';
        const req = session.request({
            ':method': method, ':path': job.uri,
            ...(body === undefined
                ? {} : { 'content-type': 'application/json' }),
            ...job.headers,
        }, { endStream: body === undefined });

        req.setEncoding('utf8');
        req.on('response', (h) => {
            r.status = h[':status'];
            r.headers = { ...h };
            r.header_ms = ms();
        });
        req.on('data', (d) => {
            r.text += d;
            r.first_ms ??= ms();
            r.data_ms.push(ms());
            r.events += d.split('data: ').length - 1;
            if (job.abort_after && r.events >= job.abort_after && !r.aborted) {
                r.aborted = true;
                req.close(http2.constants.NGHTTP2_CANCEL);
            }
            if (job.stall && !r.stalled) {
                r.stalled = true;
                req.pause();
                setTimeout(() => req.resume(), job.stall);
            }
        });
        req.on('end', () => { r.ended = !r.aborted; });
        req.on('error', (e) => { r.error = String(e); });
        req.on('close', () => {
            r.end_ms = ms();
            resolve(r);
        });
        if (body !== undefined) {
            req.end(body);
        }
    });
}


session.on('error', (e) => {
    console.log(JSON.stringify([{ status: 0, error: String(e) }]));
    process.exit(0);
});

const jobs = job.requests
    ?? Array.from({ length: job.streams ?? 1 }, () => job);
const all = await Promise.all(jobs.map(one));
session.close();
console.log(JSON.stringify(all));
