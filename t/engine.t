#!/usr/bin/perl

# The engine's failures: absent, of a wrong version, full of lanes, restarted,
# dead in the middle of a stream, hung, and lying.  nginx goes on serving and
# finds the engine again without a reload.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ time sleep /;

my $t = Test::LLM->new();

$t->nginx(sprintf(<<'CONF', $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%% resume=0;

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s

        location / { llm_pass e; }
        location = /plain { return 200 "plain"; }
    }
CONF

sub chat {
    my ($script, %opt) = @_;
    return $t->request('POST', '/v1/chat/completions', {
        messages => [ { role => 'user', content => "script: $script" } ],
        ($opt{stream} ? (stream => JSON::PP::true()) : ()) }, %opt);
}

sub unavailable {
    my ($r, $what) = @_;
    my $e = $r->{json}{error} // {};
    my $after = $r->{headers}{'retry-after'} // -1;

    is($r->{status}, 503, "$what: 503");
    ok($after >= 1 && $after <= 120, "$what: Retry-After");
    ok(defined $e->{message} && exists $e->{type} && exists $e->{param}
       && exists $e->{code}, "$what: error object");
}

sub back {
    my ($what) = @_;
    ok($t->wait_for(sub { chat('tokens=2')->{status} == 200 }, 15),
       "$what: serves again without a reload");
}

# Not there.

my $start = time();
unavailable(chat('tokens=1'), 'absent');
cmp_ok(time() - $start, '<', 1, 'absent: at once');
is($t->request('GET', '/plain')->{body}, 'plain', 'absent: others served');
unavailable($t->request('GET', '/v1/models'), 'absent, models');

my ($r) = $t->h2(uri => '/v1/completions', body => { prompt => 'x' });
is($r->{status}, 503, 'absent: 503 over HTTP/2');

# Of a wrong version.

$t->engine('scripted', '--version', 99);
sleep 2.5;
unavailable(chat('tokens=1'), 'wrong version');
like($t->read_file('logs/error.log'), qr/version/, 'wrong version: logged');
$t->stop('engine');

# There, then restarted.

$t->engine('scripted');
back('started');
$t->stop('engine');
sleep 0.2;
unavailable(chat('tokens=1'), 'stopped');
$t->engine('scripted');
back('restarted');

# Dies in the middle of a stream, or before anything was sent.

$r = chat('tokens=1000 delay=5 die_after=20', stream => 1);
is($r->{status}, 200, 'died in a stream: 200 stood');
my @events = $t->sse($r->{body});
ok(ref $events[-1] && $events[-1]{error}{message},
   'died in a stream: an error event ends it');
unlike($r->{body}, qr/\[DONE\]/, 'died in a stream: no [DONE]');
ok(!$r->{error}, 'died in a stream: a clean end');
$t->stop('engine');
$t->engine('scripted');
back('after a death');

$r = chat('tokens=1000 delay=5 die_after=20');
cmp_ok($r->{status}, '>=', 500, 'died in an answer: an error status');
ok($r->{json}{error}{message}, 'died in an answer: an error object');
$t->stop('engine');
$t->engine('scripted');
back('after a second death');

my ($h) = $t->h2(uri => '/v1/chat/completions', body => {
    stream => JSON::PP::true(), messages => [ { role => 'user',
        content => 'script: tokens=1000 delay=5 die_after=20' } ] });
like($h->{text}, qr/"error"/, 'died in a stream, HTTP/2: an error event');
ok($h->{ended}, 'died in a stream, HTTP/2: a clean end');
$t->stop('engine');
$t->engine('scripted');
back('after a third death');

# Hangs: the socket stays open, the heartbeat stops.

$r = chat('tokens=1000 delay=5 hang_after=20', stream => 1, limit => 60);
like($r->{body}, qr/"error"/, 'hung: an error event within the limit');
ok(!$r->{error}, 'hung: a clean end');
unavailable(chat('tokens=1'), 'hung');
$t->stop('engine', 'KILL');
$t->engine('scripted');
back('after a hang');

# Lies: each violation drops the lane, and only that.

for my $c (qw/ head size type text cursor id zero order token /) {
    my $conn = $t->connect();
    $t->send_request($conn, 'POST', '/v1/chat/completions', {
        stream => JSON::PP::true(), messages => [ { role => 'user', content =>
            "script: tokens=1000 delay=2 corrupt=$c corrupt_after=10" } ] });

    # The cursor of submissions is looked at when there is one to make.
    if ($c eq 'cursor') {
        $t->wait_for(sub { $t->events() =~ /what=cursor/ });
        chat('tokens=1');
    }

    $r = $t->read_response($conn, limit => 30);
    ok(!$r->{error} && $r->{body} =~ /"error"/ || $r->{status} >= 500,
       "violation ($c): the stream ends with an error");
    back("violation ($c)");
}

is(scalar(() = $t->read_file('logs/error.log') =~ /exited on signal/g), 0,
   'no worker died');

$t->done();
done_testing();
