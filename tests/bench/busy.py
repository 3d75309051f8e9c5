#!/usr/bin/env python3
"""The engine beside a busy process, and doing nothing.

    busy.py ENGINE MODEL [ROUNDS]

Decode at batch 1 with one thread and with all cores, in turn: on an idle
machine, then beside one process that never waits.  Then an engine that serves
nobody: its processor time over five seconds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

ENGINE, MODEL = sys.argv[1], sys.argv[2]
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 3
CORES = len(os.sched_getaffinity(0))
IDLE = 5                                # seconds


def decode(threads):
    r = subprocess.run([ENGINE, 'bench', '--json', '--model', MODEL,
                        '--threads', str(threads), '--batch', '1',
                        '--prompt-tokens', '0', '--new-tokens', '256',
                        '--repeat', '1'],
                       stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(r.stdout)['results'][0]['tokens_per_second']


def median(x):
    return sorted(x)[len(x) // 2]


def measure(name):
    got = {1: [], CORES: []}
    for _ in range(ROUNDS):
        for threads in got:
            got[threads].append(decode(threads))
    for threads, x in got.items():
        print('%s, %d thread%s: %.1f tok/s [%.1f - %.1f]' % (
            name, threads, '' if threads == 1 else 's', median(x), min(x),
            max(x)), flush=True)
    return median(got[1]), median(got[CORES])


def idle():
    with tempfile.TemporaryDirectory() as d:
        p = subprocess.Popen([ENGINE, 'serve', '--model', MODEL, '--socket',
                              d + '/engine.sock', '--log-level', 'error'])
        try:
            while not os.path.exists(d + '/engine.sock'):
                if p.poll() is not None:
                    sys.exit('busy.py: the engine did not start')
                time.sleep(0.1)
            time.sleep(1)
            before = ticks(p.pid)
            time.sleep(IDLE)
            return (ticks(p.pid) - before) / os.sysconf('SC_CLK_TCK')
        finally:
            p.terminate()
            p.wait()


def ticks(pid):
    with open('/proc/%d/stat' % pid) as f:
        x = f.read().rpartition(')')[2].split()
    return int(x[11]) + int(x[12])


one, _ = measure('idle')
busy = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
try:
    busy_one, busy_all = measure('beside a busy process')
finally:
    busy.kill()
    busy.wait()
print('%d threads beside it keep %.0f %% of one thread beside it, %.0f %% of '
      'one thread idle' % (CORES, 100 * busy_all / busy_one,
                           100 * busy_all / one))
print('serving nobody: %.3f s of processor time in %d s' % (idle(), IDLE))
