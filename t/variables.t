#!/usr/bin/perl

# The $llm_* variables: in the log of every kind of request, and used in
# places where they are not known yet.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my $true = JSON::PP::true();
my $t = Test::LLM->new();

my @names = qw/ model prompt_tokens cached_tokens completion_tokens
                reasoning_tokens queue_time ttft tpot finish_reason rank /;
my $fields = join ',', map { qq("$_":"\$llm_$_") } @names;

$t->engine('scripted', '--ranks', 4, '--model', 'org/tiny,alias');
$t->nginx(sprintf(<<'CONF', $fields, $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%%;
    llm_engine gone unix:%%%%DIR%%%%/run/none.sock;
    log_format llm escape=json '{"id":"$http_x_request_id","status":$status,'
                               '%s}';
    map $llm_finish_reason $ended { stop whole; length cut; default other; }
    map $llm_completion_tokens $many { ~^\d\d+$ many; default few; }
    log_format mapped '$ended $many';

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s
        access_log logs/llm.log llm;
        access_log logs/mapped.log mapped if=$llm_model;

        location / { llm_pass e; }
        location /gone/ { llm_pass gone; }
        location /other/ { return 200 "[$llm_model$llm_rank$llm_ttft]"; }
        location /page/ { error_page 429 /other/; llm_pass e; }
        location /early/ {
            if ($llm_model) { return 500; }
            set $x "$llm_prompt_tokens $llm_tpot $llm_finish_reason";
            add_header X-Model "$llm_model" always;
            add_header X-Reason "$llm_finish_reason$x" always;
            add_header X-Prompt "$llm_prompt_tokens" always;
            add_trailer X-Tokens "$llm_completion_tokens" always;
            add_trailer X-Reason "$llm_finish_reason" always;
            llm_pass e;
        }
        location /zone/ { limit_req zone=z burst=100; llm_pass e; }
        location /ssi/ { ssi on; ssi_types *; sub_filter_types *;
                         sub_filter w1 "$llm_model"; llm_pass e; }
    }
    limit_req_zone $llm_model zone=z:1m rate=100r/s;
CONF

my $id = 0;

# Sends a request and returns what was logged of it.

sub logged {
    my ($uri, $script, %opt) = @_;
    my $name = 'r' . ++$id;
    my $r = $t->request('POST', $uri, {
        messages => [ { role => 'user', content => "script: $script" } ],
        %{ $opt{body} // {} } }, headers => { 'X-Request-Id' => $name });

    return (line($name), $r);
}

sub line {
    my ($name) = @_;
    my $l;

    $t->wait_for(sub {
        ($l) = $t->read_file('logs/llm.log') =~ /^(\{"id":"$name",.*\})\n/m;
    }, 5);
    return $t->decode($l // '{}');
}

sub near {
    my ($is, $low, $high, $what) = @_;

    $high *= 10 if $ENV{NGINX_WRAP};
    ok($is =~ /^\d+\.\d{3}$/ && $is >= $low && $is <= $high,
       "$what ($is in $low .. $high)");
}

my $chat = '/v1/chat/completions';
my $counts = 'prompt_tokens=9 cached=4 rank=2';

for my $stream (0, 1) {
    my $what = $stream ? 'stream' : 'answer';
    my ($l) = logged($chat, "reasoning=2 tokens=9 delay=30 first=300 "
                     . "prefill=200 $counts",
                     body => $stream ? { stream => $true } : {});
    my %want = (model => 'org/tiny', prompt_tokens => 9, cached_tokens => 4,
                completion_tokens => 11, reasoning_tokens => 2, rank => 2,
                finish_reason => 'stop', status => 200);
    is($l->{$_}, $want{$_}, "$what: $_") for sort keys %want;
    near($l->{queue_time}, 0.29, 0.8, "$what: queue_time");
    near($l->{ttft}, 0.48, 1.3, "$what: ttft");
    near($l->{tpot}, 0.025, 0.12, "$what: tpot");
    cmp_ok($l->{ttft}, '>=', $l->{queue_time}, "$what: in order");
}

my ($l, $r) = logged($chat, 'tokens=1', body => { model => 'alias' });
is($l->{model}, 'alias', 'the model as it was asked for');
is($l->{tpot}, '', 'one token has no time between tokens');

($l) = logged($chat, 'tokens=50', body => { max_tokens => 5, n => 3 });
is("$l->{finish_reason} $l->{completion_tokens} $l->{prompt_tokens}",
   'length 15 2', 'choices: tokens of all, the prompt once');

($l) = logged('/v1/completions', '', body => {
    prompt => 'a b c', echo => $true, max_tokens => 0 });
is("$l->{completion_tokens} $l->{prompt_tokens} $l->{ttft}", '0 3 ',
   'scoring: nothing generated');

# Errors.

($l) = logged($chat, '', body => { n => 0 });
is("$l->{status} $l->{finish_reason} $l->{model}$l->{prompt_tokens}",
   '400 error ', 'a bad parameter');
($l) = logged('/v1/none', '');
is("$l->{status} " . join('', @$l{@names}), '404 ', 'no endpoint');
($l) = logged('/gone/v1/completions', '');
is("$l->{status} $l->{model}$l->{rank}", '503 ', 'no engine');
($l) = logged($chat, 'error=queue');
is("$l->{status} $l->{finish_reason} $l->{model} $l->{prompt_tokens}",
   '429 error org/tiny ', 'refused by the engine');
($l) = logged($chat, 'tokens=50 delay=2 fail_after=10',
              body => { stream => $true });
is("$l->{status} $l->{finish_reason} $l->{completion_tokens}",
   '200 error 10', 'failed in a stream');
($l) = logged($chat, 'tokens=50 delay=2 fail_after=10');
is("$l->{status} $l->{finish_reason} $l->{completion_tokens}",
   '500 error 10', 'failed in an answer');

# Aborts.

for my $case ([ 'a stream', 'tokens=100000 delay=10', 1 ],
              [ 'an answer', 'tokens=100000 delay=10', 0 ],
              [ 'the queue', 'first=100000', 1 ])
{
    my ($what, $script, $stream) = @$case;
    my $name = 'r' . ++$id;
    my $c = $t->connect();
    my $n = $t->count('submit');
    $t->send_request($c, 'POST', $chat, {
        messages => [ { role => 'user', content => "script: $script" } ],
        ($stream ? (stream => $true) : ()) }, 'X-Request-Id' => $name);
    $t->wait_for(sub { $t->count('submit') > $n });
    select undef, undef, undef, 0.2;
    close $c->{sock};

    $l = line($name);
    is("$l->{finish_reason} $l->{model}", 'cancelled org/tiny',
       "left, $what: reason");
    is($l->{status}, 499, "left, $what: status") if !$stream;
    $what eq 'the queue' ? is($l->{prompt_tokens}, '', "left, $what: no counts")
        : cmp_ok($l->{completion_tokens}, '>', 0, "left, $what: tokens so far");
}

# HTTP/2.

my ($h) = $t->h2(uri => $chat, headers => { 'x-request-id' => 'h2' }, body => {
    stream => $true, messages => [
        { role => 'user', content => "script: tokens=4 $counts" } ] });
$l = line('h2');
is("$l->{finish_reason} $l->{completion_tokens} $l->{rank}", 'stop 4 2',
   'HTTP/2');

# Elsewhere.

($l, $r) = logged('/other/', '');
is(join('', @$l{@names}), '', 'another location: nothing');
is($r->{body}, '[]', 'another location: in a text');
($l, $r) = logged('/page/v1/chat/completions', 'error=queue');
is("$l->{status} $r->{body}", '429 []', 'after error_page');

for my $stream (0, 1) {
    ($l, $r) = logged('/early/v1/chat/completions', "tokens=12 $counts",
                      body => $stream ? { stream => $true } : {});
    is($r->{status}, 200, "early ($stream)");
    is($r->{headers}{'x-model'}, 'org/tiny', "early ($stream): model");
    is($r->{headers}{'x-prompt'}, 9, "early ($stream): prompt");
    is($l->{completion_tokens}, 12, "early ($stream): the log");
}
is(logged('/early/v1/chat/completions', 'error=queue')->{status}, 429,
   'early: an error') for 1;

my $c = $t->connect();
$t->send_request($c, 'POST', '/early/v1/completions', {
    prompt => 'script: tokens=12', stream => $true }, Connection => 'close',
    TE => 'trailers');
my $wire = '';
while (sysread $c->{sock}, my $buf, 65536) {
    $wire .= $buf;
}
like($wire, qr/\[DONE\]\n\n\r\n0\r\n(?:.*\r\n)*X-Tokens: 12\r\n/,
     'trailers: tokens');
like($wire, qr/X-Reason: stop\r\n/, 'trailers: reason');
($h) = $t->h2(uri => '/early/v1/completions', body => {
    prompt => 'script: tokens=12', stream => $true });
like($h->{text}, qr/w12.*\[DONE\]\n\n$/s, 'trailers: HTTP/2');

($l) = logged('/zone/v1/chat/completions', 'tokens=2');
is($l->{status}, 200, 'as the key of a zone');
($l, $r) = logged('/ssi/v1/chat/completions', 'tokens=2',
                  body => { stream => $true });
is($t->sse_text($r->{body}), 'org/tiny w2', 'in sub_filter');

$t->stop('nginx', 'QUIT');
my $mapped = $t->read_file('logs/mapped.log');
like($mapped, qr/^whole many\n/, 'map: the first');
is(scalar(() = $mapped =~ /^cut many$/mg), 1, 'map: cut');
unlike($mapped, qr/^$/m, 'map: never empty');

$t->done();
done_testing();
