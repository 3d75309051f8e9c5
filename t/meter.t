#!/usr/bin/perl

# llm_meter: what other servers answer is counted, limited and priced, in any
# framing, and not a byte of it is changed or held.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';

my $log = join ' ', map { "$_=[\$llm_$_]" } qw/ model prompt_tokens
    cached_tokens completion_tokens reasoning_tokens finish_reason rank
    queue_time usage_source cost account /;

$t->write_file('keys', "account alice tier=paid\nkey alice "
               . sha256_hex('sk-alice') . "\n");

sub conf { return sprintf <<'CONF', $log, $_[0] // '' }
    log_format meter '$http_x_request_id status=[$status] %s '
                     'ttft=[$llm_ttft] tpot=[$llm_tpot]';
    access_log logs/meter.log meter;
    llm_engine e unix:%%%%SOCKET%%%%;
    llm_token_limit_zone $uri zone=tokens:1m rate=60t/m;
    llm_price hit=1 miss=2 output=4;
    upstream foreign { server 127.0.0.1:%%%%PORT:foreign%%%%; keepalive 4; }
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    client_body_buffer_size 16k;
    client_max_body_size 8m;

    server {
        listen %%%%LISTEN%%%%;
        llm_meter on;

        location / { proxy_pass http://foreign; }
        location /buffered/ { proxy_buffering on; proxy_pass http://foreign/; }
        location /files/ {
            proxy_buffering on; proxy_buffers 4 4k; proxy_busy_buffers_size 8k;
            proxy_buffer_size 4k; sendfile on; proxy_pass http://foreign/;
        }
        location /gzip/ {
            gzip on; gzip_types application/json; gzip_min_length 1;
            gzip_proxied any; gzip_http_version 1.0;
            proxy_pass http://foreign/;
        }
        location /limited/ {
            llm_token_limit zone=tokens burst=1000 reserve=full;
            llm_max_context 600;
            proxy_pass http://foreign/;
        }
        location /own/ { llm_pass e; }
        location /off/ { llm_meter off; proxy_pass http://foreign/; }
        location /gone/ { proxy_pass http://127.0.0.1:1/; }
        location /denied/ { deny all; proxy_pass http://foreign/; }
        location /text/ { return 200 "text"; }
        location /behind/ { proxy_pass http://%%%%LISTEN:behind%%%%/; }
        %s
    }

    server {
        listen %%%%LISTEN:behind%%%%;
        access_log off;
        location / { llm_pass e; }
    }
CONF

$t->engine('scripted');
$t->spawn('foreign', $^X, "$FindBin::Bin/lib/foreign.pl", $t->port('foreign'),
          "$t->{dir}/logs/foreign.log");
ok($t->wait_for(sub { $t->listens($t->port('foreign')) }), 'another server');
$t->nginx(conf(), workers => 2);

my $id = 0;

sub ask {
    my ($uri, $answer, %opt) = @_;
    my %body = (messages => [ { role => 'user', content => 'hello' } ],
                model => 'other-1', %{ delete $opt{body} // {} },
                $answer ? (answer => $answer) : ());

    return $t->request('POST', $uri, \%body, %opt, headers => {
        'X-Request-Id' => 'r' . ++$id, %{ $opt{headers} // {} } });
}

# What was logged of the last one.

sub logged {
    my $l;
    $t->wait_for(sub { ($l) = $t->read_file('logs/meter.log') =~
                       /^r$id (.*)\n/m }, 5);
    return { ($l // '') =~ /(\w+)=\[(.*?)\]/g };
}

sub is_logged {
    my ($name, %want) = @_;
    my $l = logged();

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is(join(' ', map { "$_=" . ($l->{$_} // 'none') } sort keys %want),
       join(' ', map { "$_=$want{$_}" } sort keys %want), $name);
    return $l;
}

sub event { return 'data: ' . $t->encode($_[0]) . ($_[1] // "\n\n") }

sub delta {
    my (%d) = @_;
    return { choices => [ { index => 0, delta => \%d,
                            finish_reason => undef } ] };
}

my %usage = (prompt_tokens => 100, completion_tokens => 10,
             prompt_tokens_details => { cached_tokens => 40 },
             completion_tokens_details => { reasoning_tokens => 3 });
my %counts = (prompt_tokens => 100, cached_tokens => 40,
              completion_tokens => 10, reasoning_tokens => 3,
              usage_source => 'reported', model => 'other-1', status => 200,
              rank => '-', queue_time => '-', cost => '0.0002');

# JSON.

my $json = $t->encode({ choices => [ { index => 0, finish_reason => 'length',
    message => { role => 'assistant', content => 'hi' } } ],
    usage => \%usage });
my $r = ask($chat, { pieces => [ $json ] });
is($r->{body}, $json, 'JSON: as it is');
is_logged('JSON: counted', %counts, finish_reason => 'length');

$r = ask($chat, { pieces => [ split //, $json ] });
is($r->{body}, $json, 'JSON byte by byte: as it is');
is_logged('JSON byte by byte: counted', %counts, finish_reason => 'length');

my $large = $t->encode({ choices => [ { index => 0, finish_reason => 'stop',
    message => { content => 'x' x 300_000 } } ], usage => \%usage });
for my $uri ('', '/buffered', '/files') {
    $r = ask("$uri$chat", { pieces => [ $large =~ /(.{1,50000})/gs ] });
    ok($r->{body} eq $large, "large$uri: as it is");
    is_logged("large$uri: counted", %counts, finish_reason => 'stop');
}

# Streams, in every framing.

my @deltas = (delta(role => 'assistant', content => ''),
              (map { delta(content => "w$_ ") } 1 .. 5));
my $end = { choices => [ { index => 0, delta => {},
                           finish_reason => 'stop' } ] };
my %sse = ('Content-Type' => 'text/event-stream; charset=utf-8');

for my $lines ("\n\n", "\r\n\r\n", "\r\r") {
    my $text = join '', ': hello', $lines, map({ event($_, $lines) } @deltas,
        $end, { choices => [], usage => \%usage }), "data: [DONE]", $lines;
    my $name = $t->encode($lines);

    for my $pieces ([ $text ], [ split //, $text ], [ $text =~ /(.{1,7})/gs ],
                    [ split /(?<=\n\n)/, $text ])
    {
        $r = ask($chat, { headers => \%sse, pieces => $pieces },
                 body => { stream => $true });
        ok($r->{body} eq $text, "stream $name in " . @$pieces);
        is_logged("stream $name in " . @$pieces . ': counted', %counts,
                  finish_reason => 'stop');
    }
}

# Events pass when they come.

my @pieces = (map({ event($_) } @deltas, $end), "data: [DONE]\n\n");
my @times;
$r = ask($chat, { headers => \%sse, delay => 0.1, pieces => \@pieces },
         body => { stream => $true },
         on_data => sub { push @times, time(); '' });
is($r->{body}, join('', @pieces), 'as they come: whole');
cmp_ok(scalar @{ $r->{chunks} }, '>=', @pieces - 1, 'as they come: chunks');
my $l = is_logged('no usage: estimated', completion_tokens => 5,
                  usage_source => 'estimated', finish_reason => 'stop');
like($l->{prompt_tokens}, qr/^[1-9]\d+$/, 'no usage: the prompt too');
like($l->{ttft}, qr/^0\.[1-4]\d\d$/, 'time to the first token');
like($l->{tpot}, qr/^0\.[01]\d\d$/, 'time between tokens');

# Half an event is not held either.

my $half = substr $pieces[1], 0, 20;
my $rest = substr $pieces[1], 20;
my $seen;
$r = ask($chat, { headers => \%sse, delay => 0.5, pieces => [ $half, $rest ] },
         on_data => sub { $seen //= $_[0]; '' });
is($seen, $half, 'half an event passes at once');

# Other ways to say it.

for my $case (
    [ 'timings', { choices => [], timings => { cache_n => 7, prompt_n => 3,
                                               predicted_n => 9 } },
      prompt_tokens => 10, cached_tokens => 7, completion_tokens => 9,
      usage_source => 'reported' ],
    [ 'the provider\'s', { choices => [], usage => { prompt_tokens => 8,
        completion_tokens => 2, prompt_cache_hit_tokens => 5,
        prompt_cache_miss_tokens => 3 } },
      prompt_tokens => 8, cached_tokens => 5, completion_tokens => 2 ],
    [ 'more cached than there is', { choices => [], usage => {
        prompt_tokens => 8, completion_tokens => 2,
        prompt_cache_hit_tokens => 50 } }, prompt_tokens => 8,
      cached_tokens => 8 ],
    [ 'an error', { error => { message => 'no', type => 'x' } },
      finish_reason => 'error', cost => 0 ],
    [ 'usage that is null', { choices => [], usage => undef },
      usage_source => 'estimated' ],
) {
    my ($name, $event, %want) = @$case;
    ask($chat, { headers => \%sse, pieces => [ event($event) ] });
    is_logged($name, %want);
}

ask($chat, { pieces => [ $t->encode({ choices => [ { finish_reason =>
    'tool_calls', message => { content => 'x' x 41 } } ] }) ] });
is_logged('JSON without usage', completion_tokens => 11,
          usage_source => 'estimated', finish_reason => 'tool_calls');

for my $text ('no JSON', '', '{"usage":', "\0\xff") {
    $r = ask($chat, { pieces => [ $text ] });
    is($r->{body}, $text, 'rubbish passes');
    is_logged('rubbish', status => 200, usage_source => 'estimated',
              completion_tokens => 0);
}

# What the other server is asked.

sub asked { return $t->decode((split /\n/, $t->read_file('logs/foreign.log'))
                              [-1]) }

$r = ask("/gzip$chat", { pieces => [ $json ] },
         headers => { 'Accept-Encoding' => 'gzip, br' });
is(asked()->{headers}{'accept-encoding'}, 'identity', 'no compression behind');
is($r->{headers}{'content-encoding'}, 'gzip', 'compression here');
is_logged('compression: counted', %counts);
ask($chat, { pieces => [ $json ] });
is(asked()->{headers}{'accept-encoding'}, undef, 'not asked for, not sent');
ask("/off$chat", { pieces => [ $json ] },
    headers => { 'Accept-Encoding' => 'gzip' });
is(asked()->{headers}{'accept-encoding'}, 'gzip', 'off: as it came');
is_logged('off', prompt_tokens => '-', status => 200, usage_source => '-');

$r = ask($chat, { pieces => [ 'xxxx' ],
                  headers => { 'Content-Encoding' => 'br' } });
is($r->{body}, 'xxxx', 'compressed all the same: passes');
is_logged('compressed all the same', completion_tokens => 0,
          usage_source => '-');
like($t->read_file('logs/error.log'),
     qr/llm_meter cannot count an answer in "br"/, 'that is logged');

my $big = 'y' x 3_000_000;
$r = ask($chat, { pieces => [ $json ] }, body => { x => $big });
is($r->{body}, $json, 'a large body');
cmp_ok(asked()->{size}, '>', 3_000_000, 'a large body: all of it');

is($t->request('GET', '/v1/models')->{status}, 200, 'GET passes');
is(asked()->{uri}, '/v1/models', 'GET passes: there');
is($t->request('POST', '/text/x', {})->{body}, 'text', 'other handlers');
is($t->request('POST', $chat, 'no JSON')->{status}, 200, 'no JSON passes');

# An nginx of ours behind.

$r = ask("/behind$chat", undef, body => { model => 'scripted',
    stream => $true, stream_options => { include_usage => $true },
    messages => [ { role => 'user', content => 'script: reasoning=2 tokens=9 '
                    . 'prompt_tokens=9 cached=4' } ] });
is($t->sse_text($r->{body}), join(' ', map { "w$_" } 1 .. 9), 'ours behind');
is_logged('ours behind: counted', prompt_tokens => 9, cached_tokens => 4,
          completion_tokens => 11, reasoning_tokens => 2,
          usage_source => 'reported', finish_reason => 'stop');
unlike($r->{headers}{'x-request-id'}, qr/,/, 'one request id');

$r = ask("/own$chat", undef, body => { model => 'scripted' });
is($r->{status}, 200, 'llm_pass is not metered');
is_logged('llm_pass is not metered', usage_source => '-', rank => 0);

# Errors.

$t->error_ok(ask("/gone$chat"), 502, 'nobody there', code => 'bad_gateway');
is_logged('nobody there', finish_reason => 'error', prompt_tokens => '-');
$t->error_ok(ask("/denied$chat"), 403, 'denied');
$r = ask($chat, { status => 400, pieces => [ '{"error":{"message":"m"}}' ] });
is("$r->{status} $r->{body}", '400 {"error":{"message":"m"}}',
   'an error from behind');
is_logged('an error from behind', finish_reason => 'error',
          prompt_tokens => '-', cost => 0);
$r = ask($chat, { status => 500, pieces => [ '<html>' ],
                  headers => { 'Content-Type' => 'text/html' } });
is($r->{body}, '<html>', 'a page from behind passes');

ask($chat, { headers => \%sse, delay => 0.02, cut => 1,
             pieces => [ @pieces[0 .. 3] ] });
is_logged('cut off behind', completion_tokens => 3, finish_reason => 'error');
isnt(logged()->{cost}, 0, 'cut off behind: what came has its price');

my $c = $t->connect();
$t->send_request($c, 'POST', $chat, { stream => $true, answer => {
    headers => \%sse, delay => 0.05,
    pieces => [ map { event(delta(content => "x$_")) } 1 .. 200 ] } },
    'X-Request-Id' => 'r' . ++$id);
$t->read_response($c, on_data => sub { $_[1]{body} =~ /"x3"/ ? 'stop' : '' });
close $c->{sock};
$l = is_logged('left', finish_reason => 'cancelled',
               usage_source => 'estimated');
cmp_ok($l->{completion_tokens}, '>=', 2, 'left: tokens so far');
cmp_ok($l->{completion_tokens}, '<', 100, 'left: no more');
ok($t->wait_for(sub { $t->read_file('logs/foreign.log') =~ /"left"/ }),
   'left: noticed behind');

# Limits: what is reserved, and what was used.

sub left { return $_[0]{headers}{'x-ratelimit-remaining-tokens'} }

my $small = { pieces => [ $t->encode({ choices => [], usage => {
    prompt_tokens => 100, completion_tokens => 50 } }) ] };
$r = ask("/limited$chat", $small, body => { max_tokens => 300 });
is($r->{status}, 200, 'within the limit');
my $before = left($r);
cmp_ok($before, '<=', 1000 - 300, 'reserved: what was asked for');
$r = ask("/limited$chat", $small, body => { max_tokens => 10 });
is($r->{status}, 200, 'once more');
cmp_ok(left($r), '<', 1000 - 150, 'settled: what was used');
cmp_ok(left($r), '>', $before, 'settled: the rest came back');
$r = ask("/limited$chat", $small);
$t->error_ok($r, 429, 'beyond the limit');
like($r->{headers}{'retry-after'}, qr/^\d+$/, 'beyond the limit: for how long');
is_logged('beyond the limit', finish_reason => 'error', prompt_tokens => '-');
my $n = () = $t->read_file('logs/foreign.log') =~ /\n/g;
ask("/limited$chat", $small);
is(scalar(() = $t->read_file('logs/foreign.log') =~ /\n/g), $n,
   'beyond the limit: nobody was asked');

# What another server might make of a body is reserved.

sub refused {
    my ($name, $body) = @_;
    $t->error_ok($t->request('POST', '/limited/v1/completions', $body), 429,
                 $name, code => 'rate_limit_exceeded');
}

refused('four prompts', { prompt => [ qw/ a b c d / ], max_tokens => 300 });
refused('lists of ids', { prompt => [ [ 1 ], [ 2 ], [ 3 ], [ 4 ] ],
                          max_tokens => 300 });
refused('best_of', { prompt => 'a', max_tokens => 300, best_of => 4 });
refused('another name of max_tokens', { prompt => [ 'a', 'b' ],
    max_tokens => 1, n_predict => 5000 });
refused('no limit', { prompt => [ 'a', 'b' ], max_tokens => 1,
                      n_predict => -1 });
refused('n beyond 64 bits', { prompt => [ ('a') x 5000 ], n => 4294967296,
                              max_tokens => 4294967295 });
refused('a name twice', '{"max_tokens":600,"n":1,"n":2,"prompt":"a"}');

# Accounts, and a reload while a stream passes.

$c = $t->connect();
my $slow = { stream => $true, answer => { headers => \%sse, delay => 0.05,
    pieces => [ map { event(delta(content => "x$_")) } 1 .. 30 ] } };
$t->send_request($c, 'POST', $chat, $slow, 'X-Request-Id' => 'r' . ++$id);
sleep 0.3;
(my $keys = conf()) =~ s/llm_engine e/llm_accounts %%DIR%%\/keys zone=k:1m; $&/;
$t->config($keys, workers => 2);
$t->reload();
$r = $t->read_response($c);
is(scalar($t->sse($r->{body})), 30, 'a reload cuts no stream');
close $c->{sock};      # an old worker may linger, and log after that
is_logged('a reload', completion_tokens => 30);

$t->error_ok(ask($chat, { pieces => [ $json ] }), 401, 'no key',
             code => 'invalid_api_key');
$r = ask($chat, { pieces => [ $json ] },
         headers => { Authorization => 'Bearer sk-alice' });
is($r->{body}, $json, 'a key');
is_logged('a key', %counts, account => 'alice');

# Configurations that are refused.

for my $case (
    [ 'llm_meter;', 'invalid number of arguments in "llm_meter"' ],
    [ 'llm_meter yes;', 'invalid value "yes" in "llm_meter" directive, it '
      . 'must be "on" or "off"' ],
    [ 'llm_meter on; llm_meter on;', '"llm_meter" directive is duplicate' ],
    [ 'upstream u { llm_meter on; }',
      '"llm_meter" directive is not allowed here' ],
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $t->config_test($conf);
    ok(!$ok && index($out, $want) >= 0, "refused: $want") or diag($out);
}

$t->done(allow => qr/\[emerg\]/);
done_testing();
