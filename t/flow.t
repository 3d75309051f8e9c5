#!/usr/bin/perl

# Flow control is per request: a client that stops reading pauses its own
# sequence and nobody else's, and when it reads on nothing is missing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ time sleep /;

my $t = Test::LLM->new();

$t->engine('scripted');
$t->nginx(sprintf(<<'CONF', $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%%;

    server {
        listen %%%%LISTEN%%%% sndbuf=16k;
        listen %%%%LISTEN:https%%%% ssl http2 sndbuf=16k;
        %s

        location / { llm_pass e; }
        location /short/ { llm_pass e; send_timeout 1s; }
    }
CONF

my $tokens = 60000;
my $body = { stream => JSON::PP::true(), messages => [
    { role => 'user', content => "script: tokens=$tokens batch=16" } ] };

# One that does not read, over each protocol.

my $slow = $t->connect();
$t->send_request($slow, 'POST', '/v1/chat/completions', $body);
my $slow2 = $t->h2_start(uri => '/v1/chat/completions', body => $body,
                         stall => 6000);



sleep 1.5;
my $rss = rss();

# Fifty others are as fast as without it.

my @c;
my $start = time();
for (1 .. 50) {
    my $c = $t->connect();
    $t->send_request($c, 'POST', '/v1/chat/completions', {
        stream => JSON::PP::true(), messages => [
            { role => 'user', content => 'script: tokens=100 delay=10' } ] });
    push @c, $c;
}
my $whole = 0;
for my $c (@c) {
    my $r = $t->read_response($c);
    $whole++ if $r->{body} =~ /w100".*\[DONE\]\n\n$/s;
}
is($whole, 50, 'fifty others ended');
cmp_ok(time() - $start, '<', 4, 'and were not held up');

cmp_ok(rss() - $rss, '<', 16 << 10,
       'memory does not grow with the unread (kB)');

# It reads on.

my $r = $t->read_response($slow, limit => 60);
my @w = $t->sse_text($r->{body}) =~ /w(\d+)/g;
is(scalar @w, $tokens, 'the slow one gets every token');
is(scalar(grep { $w[$_] != $_ + 1 } 0 .. $#w), 0, 'in order');
like($r->{body}, qr/\[DONE\]\n\n$/, 'and the end');

($r) = $t->h2_finish($slow2);
@w = $t->sse_text($r->{text}) =~ /w(\d+)/g;
is(scalar @w, $tokens, 'HTTP/2: the slow one gets every token');

# One that never reads again is cut by send_timeout, and cancelled.

my $never = $t->connect();
my $cancels = () = $t->events() =~ /^cancel/mg;
$t->send_request($never, 'POST', '/short/v1/chat/completions', $body);
ok($t->wait_for(sub { $cancels < (() = $t->events() =~ /^cancel/mg) }, 15),
   'send_timeout cancels');
close $never->{sock};

$t->done();
done_testing();


sub rss {
    my ($pid) = $t->workers();
    return $t->read_file("/proc/$pid/status") =~ /VmRSS:\s+(\d+)/ ? $1 : 0;
}
