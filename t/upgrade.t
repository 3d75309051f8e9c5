#!/usr/bin/perl

# Binary upgrade: USR2 starts a new master beside the old, QUIT ends either.
# Streams are not cut; the new master's prefix zone is empty and fills again,
# and both follow the eviction log.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';

$t->engine('scripted', '--ranks', 4, '--max-lanes', 16);

# A master that is somebody's child takes no USR2.

$t->config(<<'CONF', workers => 2);
    llm_engine e unix:%%SOCKET%%;
    llm_prefix_zone zone=p:1m;
    llm_route prefix=p;

    server {
        listen %%LISTEN%%;
        add_header X-Pid $pid;

        location / { llm_pass e; }
    }
CONF
(my $conf = $t->read_file('nginx.conf')) =~ s/daemon off;/daemon on;/;
$t->write_file('nginx.conf', $conf);
is(system($t->nginx_cmd()), 0, 'nginx starts as a daemon');

sub pid_in { $t->read_file($_[0]) =~ /^(\d+)$/m ? $1 : 0 }

my $old = $t->wait_for(sub { pid_in('nginx.pid') });
$t->{pids}{nginx} = $old;
ok($t->wait_for(sub { $t->listens($t->port('http')) }), 'nginx listens');

# A request that has two blocks; the hint that it got, and from whose worker.

sub hint {
    my ($key, $script) = @_;
    my $r;

    # A worker that has just started may not be connected yet.

    $t->wait_for(sub {
        $r = $t->request('POST', $chat, { max_tokens => 5, messages => [
            { role => 'system', content => "$key " x 300 },
            { role => 'user', content => "script: $script" } ] });
        return $r->{status} != 503;
    });
    is($r->{status}, 200, 'answered') or diag $r->{body};

    my $s = ($t->submits())[-1];
    my ($master) = $t->read_file("/proc/$r->{headers}{'x-pid'}/status")
        =~ /^PPid:\s*(\d+)/m;
    return wantarray ? ($s->{rank_hint}, $master // 0) : $s->{rank_hint};
}

# What each of two masters says first.

sub both {
    my ($key, $script) = @_;
    my %first;

    for (1 .. 400) {
        my ($hint, $master) = hint($key, $script);
        $first{$master} //= $hint;
        last if keys %first == 2;
    }
    return \%first;
}

sub upgrade {
    my $master = pid_in('nginx.pid');

    kill 'USR2', $master;
    ok($t->wait_for(sub {
        my $new = pid_in('nginx.pid');
        return pid_in('nginx.pid.oldbin') == $master && $new
            && $new != $master && children($new) >= 2;
    }, 20), 'a new master beside the old');
    return pid_in('nginx.pid');
}

sub children {
    return scalar split ' ', $t->read_file("/proc/$_[0]/task/$_[0]/children");
}

sub gone {
    my ($master) = @_;

    kill 'QUIT', $master;
    return $t->wait_for(
        sub { !length $t->read_file("/proc/$master/cmdline") }, 30);
}

is(hint('a', 'tokens=1 rank=2'), -1, 'before: nothing is known');
is(hint('a', 'tokens=1 rank=2'), 2, 'before: a match');
is(hint('b', 'tokens=1 rank=3'), -1, 'before: another beginning');

my $stream = $t->connect();
$t->send_request($stream, 'POST', $chat, { stream => $true, messages => [
    { role => 'user', content => 'script: tokens=200 delay=20' } ] });
ok($t->wait_for(sub { $t->count('submit') == 4 }), 'a stream is under way');

# Two masters, each with a zone of its own.

my $new = upgrade();
my $first = both('a', 'tokens=1 rank=2');
is($first->{$old}, 2, 'both: the old master knows');
is($first->{$new}, -1, 'both: the new one does not');
$first = both('a', 'tokens=1 rank=2');
is("$first->{$old} $first->{$new}", '2 2', 'both: now both do');

hint('a', 'tokens=1 prefill=100 rank=2 evict=0');
$first = both('a', 'tokens=1 rank=1');
is("$first->{$old} $first->{$new}", '-1 -1', 'both: both hear of an eviction');

# The new one is given up.

ok(gone($new), 'given up: the new master ends');
ok($t->wait_for(sub { pid_in('nginx.pid') == $old }),
   'given up: the old one is the only one again');
is(hint('a', 'tokens=1 rank=1'), 1, 'given up: the old zone is true');
is(hint('b', 'tokens=1 rank=3'), 3, 'given up: and forgot nothing');

# The old one is ended.

$new = upgrade();
ok(kill('QUIT', $old), 'upgrade: the old master may go');
my $r = $t->read_response($stream, limit => 30);
is(scalar(() = $t->sse_text($r->{body}) =~ /\bw\d+/g), 200,
   'upgrade: its stream is whole');
like($r->{body}, qr/\[DONE\]\n\n$/, 'upgrade: to the end');
ok(gone($old), 'upgrade: it ends');
$t->{pids}{nginx} = $new;

is(hint('b', 'tokens=1 rank=3'), -1, 'upgrade: the first has no match');
is(hint('b', 'tokens=1 rank=3'), 3, 'upgrade: the second has')
    for 1 .. 4;
hint('b', 'tokens=1 prefill=100 rank=3 evict=0');
is(hint('b', 'tokens=1 rank=0'), -1, 'upgrade: the eviction log is followed');
is(hint('b', 'tokens=1 rank=0'), 0, 'upgrade: learnt again');

# As many records as the log has, before its workers look again.

hint('b', 'tokens=1 prefill=100 rank=0 log=16385');
is(hint('b', 'tokens=1 rank=0'), -1, 'upgrade: a log that lapped');
is(hint('b', 'tokens=1 rank=0'), 0, 'upgrade: learnt once more');

$t->done();
done_testing();
