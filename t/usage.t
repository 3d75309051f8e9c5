#!/usr/bin/perl

# nginx-conf/usage-log.conf: one JSON object for every kind of request, and
# llm-ledger report adds them up.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my $t = Test::LLM->new();
my $top = Test::LLM::top();

$t->engine('scripted');
$t->nginx(<<"CONF");
    llm_engine e unix:%%SOCKET%%;
    llm_engine gone unix:%%DIR%%/run/none.sock;
    include $top/nginx-conf/usage-log.conf;

    server {
        listen %%LISTEN%%;
        access_log logs/usage.log llm_usage;

        llm_price hit=1 miss=2 output=3.5;

        location / { llm_pass e; }
        location /unpriced/ { llm_price off; llm_pass e; }
        location /gone/ { llm_pass gone; }
        location /denied/ { deny all; llm_pass e; }
    }
CONF

my $id = 0;

sub chat {
    my ($uri, $script, %body) = @_;

    $t->request('POST', $uri, {
        messages => [ { role => 'user', content => "script: $script" } ],
        %body }, headers => { 'X-Request-Id' => 'r' . ++$id });
}

my $chat = '/v1/chat/completions';

chat($chat, 'reasoning=2 tokens=9 prompt_tokens=9 cached=4');
chat($chat, 'tokens=5 prompt_tokens=20 cached=20',
     stream => JSON::PP::true());
chat($chat, '', n => 0);
chat($chat, 'error=queue');
chat($chat, '', model => "no \"model\"\n\x{e9}");
chat('/gone/v1/chat/completions', '');
chat('/denied/v1/chat/completions', '');
chat('/unpriced/v1/chat/completions', 'tokens=1 prompt_tokens=1 cached=1');
$t->send_raw($t->connect(), "GET / HTTP/9.9\r\n\r\n");

my @lines;
$t->wait_for(sub {
    @lines = split /\n/, $t->read_file('logs/usage.log');
    @lines == 9;
}, 10);
is(scalar @lines, 9, 'a line for each request');

for my $i (0 .. $#lines) {
    my $l = $t->decode($lines[$i]);
    ok(ref $l eq 'HASH', "line $i is JSON") or diag($lines[$i]);
    like($lines[$i], qr/"\Q$_\E":\d+[,}]/, "line $i: $_ is a number")
        for qw/ status prompt_tokens cached_tokens completion_tokens
                reasoning_tokens /;
}

my $l = $t->decode($lines[0]);
my %want = (request_id => 'r1', status => 200, prompt_tokens => 9,
            cached_tokens => 4, completion_tokens => 11,
            reasoning_tokens => 2, cost => 0.0000525,
            finish_reason => 'stop', rank => 0);
is($l->{$_}, $want{$_}, "answer: $_") for sort keys %want;
like($lines[0], qr/"$_":\d+\.\d{3}[,}]/, "answer: $_")
    for qw/ ttft duration /;

$l = $t->decode($lines[6]);
is($l->{status}, 403, 'denied: status');
is($l->{$_}, undef, "denied: $_ is null") for qw/ ttft rank /;

# What a request costs is a number, "null" where nothing says what; 0 for those
# that got nothing.

my @costs = map { /"cost":([^,]+),/ ? $1 : 'none' } @lines;
is("@costs", '0.0000525 0.0000375 0 0 0 0 0 null null', 'costs');

my $program = ($ENV{BUILD} // "$top/build") . '/llm-ledger';
my $json = `$program report --format json --price hit=1,miss=2,output=3 \\
    ${\ $t->dir()}/logs/usage.log`;
is($?, 0, 'llm-ledger report');

my $r = $t->decode($json) // {};
%want = (requests => 9, failed_requests => 6, damaged_lines => 0,
         input_tokens => 30, hit_tokens => 25, miss_tokens => 5,
         output_tokens => 17, reasoning_tokens => 2,
         revenue_usd => 0.000086);
cmp_ok($r->{$_} // -1, '==', $want{$_}, "report: $_") for sort keys %want;

$json = `$program report --format json ${\ $t->dir()}/logs/usage.log`;
$r = $t->decode($json) // {};
cmp_ok($r->{revenue_usd} // -1, '==', 0.00009, 'report: the costs logged');
cmp_ok($r->{unpriced_requests} // -1, '==', 1, 'report: unpriced');

$t->done();
done_testing();
