#!/usr/bin/perl

# llm_metrics: every name in Prometheus' format, counted once for each request
# by whichever worker, kept over a reload; what vLLM's dashboards ask for.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Test::Prometheus;

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';

# promtool's own opinion, where it is installed.

my ($promtool) = grep { -x } map { "$_/promtool" } split /:/, $ENV{PATH};

sub scrape {
    my ($uri, $what) = @_;
    my $r = $t->request('GET', $uri);
    my $m = Test::Prometheus->parse($r->{body});

    is(join("\n", @{ $m->{errors} }), '', "$what: the format") if $what;
    $m->{response} = $r;
    return $m;
}

# The first scrape that has $n requests.

sub after {
    my ($n, $what) = @_;
    my $m;

    $t->wait_for(sub {
        $m = scrape('/metrics');
        return $m->sum('llm_requests_total') >= $n;
    });
    is($m->sum('llm_requests_total'), $n, "$what: requests");
    is(join("\n", @{ $m->{errors} }), '', "$what: the format");
    return $m;
}

sub chat {
    my ($script, %opt) = @_;
    my $uri = delete $opt{uri} // $chat;
    return $t->request('POST', $uri, { messages => [
        { role => 'user', content => "script: $script" } ], %opt });
}

# Bad configurations.

sub bad {
    my ($text, $want, $what) = @_;
    my ($ok, $out) = $t->config_test(<<"CONF");
    llm_engine e unix:%%SOCKET%%;
    server { listen %%LISTEN%%; $text }
CONF
    ok(!$ok && index($out, $want) >= 0, $what) or diag($out);
}

bad('location / { llm_metrics prom; }', 'invalid parameter "prom"',
    'bad: parameter');
bad('location / { llm_metrics vllm vllm; }',
    'invalid number of arguments in "llm_metrics" directive', 'bad: two');
bad('location / { llm_metrics; llm_metrics vllm; }',
    '"llm_metrics" directive is duplicate', 'bad: twice');
bad('llm_metrics;', '"llm_metrics" directive is not allowed here',
    'bad: server');

my $conf = sprintf(<<'CONF', $t->tls());
    llm_engine e unix:%%%%SOCKET%%%%;
    llm_engine gone unix:%%%%DIR%%%%/run/none.sock;
    llm_prefix_zone zone=p:1m;
    limit_req_zone $binary_remote_addr zone=one:1m rate=1r/m;
    llm_response_cache_path %%%%DIR%%%%/cache keys_zone=replies:1m;

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s

        location / { llm_pass e; llm_route prefix=p; }
        location /limited/ { limit_req zone=one; llm_pass e; }
        location /denied/ { deny all; llm_pass e; }
        location /gone/ { llm_pass gone; }
        location /again/ { llm_pass e; llm_response_cache replies; }
        location /read/ { llm_read_body on; deny all; llm_pass e; }
        location /page/ { error_page 404 /text; llm_pass e; }
        location = /text { return 404 "none"; }
        location = /metrics { llm_metrics; }
        location /other/ {
            llm_meter on;
            proxy_pass http://%%%%LISTEN:other%%%%/;
            location /other/denied/ { deny all; }
        }
        location = /vllm { llm_metrics vllm; }
        location /off/ { llm_metrics; deny all; }
        location /nested/ { llm_metrics; location /nested/in/ { } }
    }

    server {
        listen %%%%LISTEN:other%%%%;
        location / {
            return 200 '{"model":"theirs","choices":[{"index":0,"message":
{"role":"assistant","content":"yes"},"finish_reason":"stop"}],"usage":
{"prompt_tokens":7,"completion_tokens":3,
"prompt_tokens_details":{"cached_tokens":2}}}';
            default_type application/json;
        }
        location /bad/ { return 502; }
    }
CONF

$t->engine('scripted', '--ranks', 2, '--model', 'org/ti"ny\\,alias',
           '--speculate', 3);
$t->nginx($conf, workers => 2);
$t->wait_for(sub { (scrape('/metrics')->value('llm_engine_lanes',
                                               engine => 'e') // 0) == 2 });
$t->wait_for(sub {
    !grep { !scrape('/metrics')->value('llm_engine_up', engine => 'e') }
        1 .. 4 });

# Before anything was served.

my $m = scrape('/metrics', 'at first');
my $h = $m->{response}{headers};
my $model = 'org/ti"ny\\';

is($m->{response}{status}, 200, 'status');
is($h->{'content-type'}, 'text/plain; version=0.0.4; charset=utf-8', 'type');
is($h->{'cache-control'}, 'no-store', 'not stored');
is($m->sum('llm_requests_total'), 0, 'no requests, models are none');
is($m->value('llm_engine_up', engine => 'gone'), 0, 'an engine is gone');
is($m->value('llm_engine_steps_total', engine => 'gone'), undef,
   'and has no more to say');
is($m->value('llm_engine_info', engine => 'e', model => $model,
             fingerprint => '000000005c81b7ed'), 1, 'what an engine serves');

for (qw/ running_requests waiting_requests lanes steps_total tokens_total
         requests_total heartbeat_age_seconds /)
{
    ok(defined $m->value("llm_engine_$_", engine => 'e'), "engine: $_");
}
for my $rank (0, 1) {
    my @l = (engine => 'e', rank => $rank);
    is($m->value('llm_rank_kv_blocks', @l), 1024, "rank $rank: blocks");
    is($m->value('llm_rank_kv_free_blocks', @l), 1024, "rank $rank: free");
    is($m->value('llm_rank_expert_load_ratio', @l), 1, "rank $rank: experts");
    is($m->value('llm_rank_running_requests', @l), 0, "rank $rank: running");
    is($m->value('llm_rank_tokens_per_second', @l), 0, "rank $rank: speed");
    is($m->value('llm_rank_expert_moves_total', @l), 0, "rank $rank: moves");
}
is($m->value('llm_engine_lanes', engine => 'e'), 2, 'lanes of two workers');

# What requests add.

my $n = 0;

for my $stream (0, 1) {
    for (1 .. 10) {
        chat('tokens=5 reasoning=2 delay=2 first=10 prefill=20 '
             . 'prompt_tokens=9 cached=4', $stream ? (stream => $true) : ());
        $n++;
    }
}

$m = after($n, 'served');

my @m = (model => $model);
my %tokens = (prompt => 9, cached => 4, completion => 7, reasoning => 2);

is($m->value('llm_requests_total', @m, status => 200,
             finish_reason => 'stop'), $n, 'served: status and reason');
is($m->value("llm_${_}_tokens_total", @m), $n * $tokens{$_}, "served: $_")
    for sort keys %tokens;
is($m->value('llm_engine_tokens_total', engine => 'e'), 7 * $n,
   'served: as the engine counts');
is($m->value('llm_engine_requests_total', engine => 'e'), $n,
   'served: requests of the engine');
is($m->value('llm_engine_drafts_total', engine => 'e'), 7 * $n,
   'served: drafts');
is($m->value('llm_engine_draft_tokens_total', engine => 'e'), 21 * $n,
   'served: guesses');
is($m->value('llm_engine_accepted_draft_tokens_total', engine => 'e'),
   14 * $n, 'served: guesses that were right');

for (qw/ time_to_first_token_seconds time_per_output_token_seconds
         queue_time_seconds request_duration_seconds /)
{
    is($m->value("llm_${_}_count", @m), $n, "served: $_, values");
}
is($m->value('llm_time_to_first_token_seconds_bucket', @m, le => '0.02'), 0,
   'served: none sooner than its prefill');
is($m->value('llm_queue_time_seconds_bucket', @m, le => '0.007'), 0,
   'served: none sooner out of the queue');
cmp_ok($m->value('llm_request_duration_seconds_sum', @m), '>=', $n * 0.03,
       'served: sum of durations');
cmp_ok($m->value('llm_time_per_output_token_seconds_sum', @m), '>=',
       $n * 0.0015, 'served: sum of times per token');
is($m->value('llm_requests_total', model => 'alias', status => 200,
             finish_reason => 'stop'), undef, 'served: no other model');

chat('tokens=3', model => 'alias');
chat('tokens=50', model => 'alias', max_tokens => 5);
$n += 2;
$m = after($n, 'an alias');
is($m->value('llm_requests_total', model => 'alias', status => 200,
             finish_reason => 'length'), 1, 'an alias: cut');
is($m->value('llm_completion_tokens_total', model => 'alias'), 8,
   'an alias: tokens');

my ($r) = $t->h2(uri => $chat, body => { messages => [
    { role => 'user', content => 'script: tokens=2' } ], stream => $true });
$m = after(++$n, 'HTTP/2');

# Routing.

my $system = 'r' x 2048;
my @talk = ({ role => 'system', content => $system },
            { role => 'user', content => 'script: tokens=1' });
for (1 .. 3) {
    $t->request('POST', $chat, { messages => \@talk });
    $m = after(++$n, "routed $_");
}
is($m->value('llm_routed_requests_total', @m, result => 'hit'), 2,
   'routed: where the prefix is');
is($m->value('llm_routed_requests_total', @m, result => 'moved'), 0,
   'routed: none moved');
is($m->sum('llm_routed_requests_total', result => 'none'), $n - 2,
   'routed: nobody had the others');

# Answers that are given again have tokens, and no times of the engine.

chat('tokens=3 prompt_tokens=5', uri => "/again$chat", temperature => 0);
$m = after(++$n, 'not in the response cache');
my $first = $m->value('llm_time_to_first_token_seconds_count', @m);
my $tokens = $m->value('llm_completion_tokens_total', @m);
chat('tokens=3 prompt_tokens=5', uri => "/again$chat", temperature => 0)
    for 1 .. 2;
$m = after($n += 2, 'out of the response cache');
is($m->value('llm_response_cache_hits_total', @m), 2, 'again: counted');
is($m->value('llm_resumed_requests_total', @m), 0, 'none was resumed');
is($m->value('llm_completion_tokens_total', @m), $tokens + 6,
   'again: their tokens');
is($m->value('llm_time_to_first_token_seconds_count', @m), $first,
   'again: no times');
is($m->value('llm_request_duration_seconds_count', @m), $n - 2,
   'again: but how long they took');

# What other servers answer.

chat('', uri => "/other$chat", model => 'theirs') for 1 .. 2;
chat('', uri => '/other/bad/', model => 'made up');
chat('', uri => '/other/denied/', model => 'theirs');
$t->request('GET', '/other/');
$m = after($n += 4, 'another server');
my @o = (model => 'theirs');
is($m->value('llm_requests_total', @o, status => 200,
             finish_reason => 'stop'), 2, 'another server: status and reason');
is($m->value('llm_prompt_tokens_total', @o), 14, 'another server: prompt');
is($m->value('llm_cached_tokens_total', @o), 4, 'another server: cached');
is($m->value('llm_completion_tokens_total', @o), 6,
   'another server: completion');
is($m->value('llm_request_duration_seconds_count', @o), 2,
   'another server: duration');
is($m->value('llm_queue_time_seconds_count', @o), 0,
   'another server: no queue that we know of');
is($m->value('llm_requests_total', model => '', status => 502,
             finish_reason => 'error'), 1, 'another server: its failure');
is($m->value('llm_requests_total', model => '', status => 403,
             finish_reason => ''), 1, 'another server: who may not');

# Refusals and errors.

for my $case ([ $chat, { n => 0 }, 400, 'error', '' ],
              [ '/v1/none', {}, 404, '', '' ],
              [ '/limited' . $chat, undef, 200, 'stop', $model ],
              [ '/limited' . $chat, undef, 503, '', '' ],
              [ '/denied' . $chat, undef, 403, '', '' ],
              [ '/gone' . $chat, undef, 503, '', '' ],
              [ $chat, 'error=queue', 429, 'error', $model ],
              [ $chat, 'tokens=9 fail_after=2', 500, 'error', $model ],
              [ '/read' . $chat, { model => 'alias' }, 403, '', 'alias' ],
              [ '/read' . $chat, { model => 'made up' }, 403, '', '' ])
{
    my ($uri, $body, $status, $reason, $model) = @$case;
    my @l = (model => $model, status => $status, finish_reason => $reason);
    my $before = scrape('/metrics')->value('llm_requests_total', @l) // 0;
    my $script = ref $body ? 'tokens=1' : $body // 'tokens=1';
    my $r = chat($script, uri => $uri, ref $body ? %$body : ());

    is($r->{status}, $status, "$status at $uri");
    $m = after(++$n, "$status at $uri");
    is($m->value('llm_requests_total', @l), $before + 1,
       "$status at $uri: counted");
}

chat('', uri => '/page/v1/none');
$t->request('GET', '/v1/models');
$t->request('GET', '/text');
$t->request('GET', '/metrics');
$m = after($n, 'nothing of an error page, models and texts');

my $c = $t->connect();
my $submits = $t->count('submit');
$t->send_request($c, 'POST', $chat, { stream => $true, messages => [
    { role => 'user', content => 'script: tokens=100000 delay=10' } ] });
$t->wait_for(sub { $t->count('submit') > $submits });
$t->wait_for(sub {
    scrape('/metrics')->value('llm_engine_running_requests',
                              engine => 'e') == 1 });
$m = scrape('/metrics', 'one runs');
is($m->value('llm_engine_running_requests', engine => 'e'), 1, 'one runs');
is($m->sum('llm_rank_running_requests'), 1, 'on one rank');
is($m->sum('llm_rank_kv_free_blocks'), 2047, 'that has blocks of it');
close $c->{sock};
$m = after(++$n, 'one left');
is($m->sum('llm_requests_total', finish_reason => 'cancelled'), 1,
   'one left: cancelled');

# vLLM's names.

my $v = scrape('/vllm', 'vllm');
my @v = (model_name => $model);

is($v->value('vllm:num_requests_running', @v, engine => 'e'), 0,
   'vllm: running');
is($v->value('vllm:num_requests_waiting', @v, engine => 'e'), 0,
   'vllm: waiting');
is($v->value('vllm:kv_cache_usage_perc', @v, engine => 'e'), 0, 'vllm: KV');

for ([ 'vllm:prompt_tokens_total', 'llm_prompt_tokens_total' ],
     [ 'vllm:generation_tokens_total', 'llm_completion_tokens_total' ],
     [ 'vllm:prefix_cache_queries_total', 'llm_prompt_tokens_total' ],
     [ 'vllm:prefix_cache_hits_total', 'llm_cached_tokens_total' ],
     [ 'vllm:time_to_first_token_seconds_count',
       'llm_time_to_first_token_seconds_count' ],
     [ 'vllm:request_time_per_output_token_seconds_sum',
       'llm_time_per_output_token_seconds_sum' ],
     [ 'vllm:request_queue_time_seconds_count',
       'llm_queue_time_seconds_count' ],
     [ 'vllm:e2e_request_latency_seconds_sum',
       'llm_request_duration_seconds_sum' ])
{
    my ($is, $want) = @$_;
    ok(defined $v->value($is, @v)
       && $v->value($is, @v) == $v->value($want, @m), "$is is $want");
}

for ([ 'drafts', 1 ], [ 'draft_tokens', 3 ], [ 'accepted_tokens', 2 ]) {
    my ($is, $each) = @$_;
    is($v->value("vllm:spec_decode_num_${is}_total", @v, engine => 'e'),
       $each * $v->value('llm_engine_tokens_total', engine => 'e'),
       "vllm: $is");
}
is(join(' ', map {
       $v->value('vllm:spec_decode_num_accepted_tokens_per_pos_total', @v,
                 engine => 'e', position => $_) // 'none' } 0 .. 3),
   join(' ', ($v->value('llm_engine_tokens_total', engine => 'e')) x 2, 0,
        'none'), 'vllm: accepted by place');
is($v->value('vllm:request_success_total', @v, finished_reason => 'abort'), 1,
   'vllm: aborted');
is($v->value('vllm:request_success_total', @v, finished_reason => 'stop'),
   $v->sum('llm_requests_total', @m, finish_reason => 'stop'),
   'vllm: succeeded');
is(scalar(grep { /^vllm/ } keys %{ scrape('/metrics')->{samples} }), 0,
   'none of them unless asked for');

SKIP: {
    skip 'no promtool', 1 if !$promtool;
    $t->write_file('tmp/metrics', scrape('/metrics')->{response}{body});
    is(`$promtool check metrics < $t->{dir}/tmp/metrics 2>&1`, '',
       'promtool has nothing to say');
}

# Methods, and who may.

is($t->request('HEAD', '/metrics')->{status}, 200, 'HEAD');
is($t->request('POST', '/metrics', {})->{status}, 405, 'POST');
is($t->request('GET', '/off/')->{status}, 403, 'denied');
is($t->request('GET', '/nested/in/x')->{status}, 404,
   'a location inside has it not');

# Many at once, on both workers; a reload, and one in between, loses nothing.

my @conns = map { $t->connect() } 1 .. 40;
$t->send_request($_, 'POST', $chat, { messages => [
    { role => 'user', content => 'script: tokens=20 delay=10' } ] }) for @conns;
$t->wait_for(sub { $t->count('submit') >= $submits + 41 });
$t->reload();
$t->read_response($_) for @conns;
$n += 40;
$m = after($n, 'over a reload');
is($m->value('llm_time_to_first_token_seconds_count', @m),
   $m->sum('llm_requests_total', @m) - 3, 'over a reload: histograms too');

$t->config($conf =~ s/location = \/vllm .*//r, workers => 1);
$t->reload(drain => 1);
$m = after($n, 'another configuration');
chat('tokens=2');
after(++$n, 'and on it goes');

# Switched off, then on again: nobody kept it.

$t->config($conf =~ s/llm_metrics(?: vllm)?;/return 204;/gr, workers => 1);
$t->reload(drain => 1);
is($t->request('GET', '/metrics')->{status}, 204, 'off');
is(chat('tokens=2')->{status}, 200, 'off: serves');
$t->config($conf, workers => 1);
$t->reload(drain => 1);
$t->wait_for(sub { chat('tokens=2')->{status} == 200 });
after(1, 'on again: from the start');

# More models than there is room for: the rest is one.

$t->stop('engine');
$t->engine('scripted', '--model', join ',', map { "model-$_" } 1 .. 40);
$t->wait_for(sub { chat('tokens=1')->{status} == 200 }, 15);
chat('tokens=1', model => "model-$_") for 1 .. 40;
$t->wait_for(sub { scrape('/metrics')->sum('llm_requests_total',
                                           status => 200) >= 42 });
$m = scrape('/metrics', 'many models');
is($m->sum('llm_requests_total', status => 200), 42,
   'many models: all counted');
cmp_ok($m->sum('llm_requests_total', model => 'other'), '>=', 9,
       'many models: the last together');

$t->done(allow => qr/\[emerg\]/);
done_testing();
