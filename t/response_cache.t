#!/usr/bin/perl

# llm_response_cache: an answer that is given again is the one that was given,
# streamed or not, whichever way it was made; what may not be given again is
# not; a damaged file is no answer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;

my ($true, $false) = (JSON::PP::true(), JSON::PP::false());
my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';
my $text = '/v1/completions';

# The shapes a cache may have are nginx's own; this is one for each.

my $path = "llm_response_cache_path $t->{dir}/cache levels=1:2 "
         . 'keys_zone=answers:1m max_size=100m inactive=1h;';

sub conf { return <<"CONF" . ($_[0] // '') }
    $path
    llm_response_cache_path $t->{dir}/other keys_zone=other:1m;
    llm_engine e unix:%%SOCKET%%;
    log_format llm '\$http_x_request_id \$status [\$llm_cache_status] '
                   '\$llm_prompt_tokens/\$llm_cached_tokens/'
                   '\$llm_completion_tokens/\$llm_reasoning_tokens '
                   '\$llm_finish_reason rank=[\$llm_rank]';
    log_format cost '\$http_x_request_id \$llm_cost';
    llm_price hit=1 miss=2 output=4;
    llm_response_cache answers;

    server {
        listen %%LISTEN%%;
        listen %%LISTEN:slow%% sndbuf=16k;
        access_log logs/llm.log llm;
        access_log logs/cost.log cost;

        location / { llm_pass e; }
        location /half/ { llm_pass e; llm_response_cache other cached=50%; }
        location /off/ { llm_pass e; llm_response_cache off; }
        location /short/ { llm_pass e; llm_max_tokens 3; }
        location /narrow/ { llm_pass e; llm_max_context 1000; }
        location /aio/ { aio threads; llm_pass e; }
        location /open/ { open_file_cache max=100; llm_pass e; }
        location /none/ { return 200 "[\$llm_cache_status]"; }
        location /page/ { error_page 429 = /none/; llm_pass e; }
    }
CONF

$t->engine('scripted');
$t->nginx(conf(), workers => 2);

my $id = 0;

sub chat_body {
    my ($script, %more) = @_;
    return { temperature => 0, %more, messages => [
        { role => 'user', content => "script: $script" } ] };
}

# Sends a request; returns the response with {cache}, its header, and {ran},
# how many submissions it took.

sub ask {
    my ($body, %opt) = @_;
    my $n = $t->count('submit');
    my $r = $t->request('POST', $opt{uri} // $chat, $body, %opt,
                        headers => { 'X-Request-Id' => 'r' . ++$id,
                                     %{ $opt{headers} // {} } });
    $r->{cache} = $r->{headers}{'x-llm-cache'} // 'none';
    $r->{ran} = $t->count('submit') - $n;
    return $r;
}

# What is a reply's own is its id and time.

sub same {
    my ($body) = @_;
    $body =~ s/"id":"[^"]*"/"id":"X"/g;
    $body =~ s/"created":\d+/"created":1/g;
    return $body;
}

sub same_ok {
    my ($r, $want, $name) = @_;
    my $is = same($r->{body});
    local $Test::Builder::Level = $Test::Builder::Level + 1;

    ok($is eq $want, $name) or diag(substr($is, 0, 1000) . "\nis not\n"
                                    . substr $want, 0, 1000);
}

sub line {
    my $l;
    $t->wait_for(sub { ($l) = $t->read_file('logs/llm.log') =~
                       /^r$id (.*)\n/m }, 5);
    return $l // '';
}

# Each kind of answer, made as a stream or not, with any way to send it after.

my %plain = ();
my %usage = (stream => $true, stream_options => { include_usage => $true });
my @ways = ([ 'JSON', {} ], [ 'stream', { stream => $true } ],
            [ 'stream with usage', \%usage ]);

my @kinds = (
    [ 'chat', $chat, 'tokens=7 prompt_tokens=9 cached=4' ],
    [ 'reasoning', $chat, 'reasoning=3 tokens=5 batch=4' ],
    [ 'bytes', $chat, 'text=%C3%A9%F0%9F%98%80%22%0A%5C bytes=1' ],
    [ 'length', $chat, 'tokens=50', max_tokens => 4 ],
    [ 'logprobs', $chat, 'reasoning=2 tokens=5', logprobs => $true,
      top_logprobs => 3 ],
    [ 'choices', $chat, 'tokens=6', n => 3, seed => 5 ],
    [ 'completion', $text, 'tokens=8', max_tokens => 100 ],
    [ 'scores', $text, '', echo => $true, max_tokens => 0, logprobs => 2 ],
    [ 'nothing', $chat, 'tokens=0' ],
    [ 'long', $chat, 'tokens=3000', logprobs => $true, top_logprobs => 5 ],
);

for my $kind (@kinds) {
    my ($what, $uri, $script, %more) = @$kind;

    for my $first (0 .. 2) {
        my (@want, @lines);

        # What the engine gives, of a user for each way.

        for my $way (@ways) {
            my $body = $uri eq $chat ? chat_body($script, %more)
                : { temperature => 0, prompt => $script
                    ? "script: $script" : 'a b c', %more };
            my $r = ask({ %$body, %{ $way->[1] }, user => "$first" },
                        uri => $uri, headers => {
                            'Cache-Control' => 'no-cache' });
            push @want, same($r->{body});
            line() =~ /^200 \[BYPASS\] (.*) rank/;
            push @lines, $1;
            is("$r->{status} $r->{cache}", '200 BYPASS',
               "$what: $way->[0], by the engine");
        }

        for my $i ($first, 0 .. 2) {
            my $body = $uri eq $chat ? chat_body($script, %more)
                : { temperature => 0, prompt => $script
                    ? "script: $script" : 'a b c', %more };
            my $r = ask({ %$body, %{ $ways[$i][1] }, user => "$first" },
                        uri => $uri);
            my $miss = !$plain{"$what $first"}++;
            my $name = "$what: $ways[$i][0]"
                . ($miss ? ', first' : " after $ways[$first][0]");
            is("$r->{cache} $r->{ran}", $miss ? 'MISS ' . ($more{n} // 1)
               : 'HIT 0', $name);
            same_ok($r, $want[$i], "$name: the same");
            my $l = line();
            $l =~ /^200 \[(\w+)\] (.*) rank=\[(.*)\]/;
            is($1, $miss ? 'MISS' : 'HIT', "$name: variable");
            is($2, $lines[$i], "$name: counts");
            is($3, $miss ? 0 : '-', "$name: rank");
        }
    }
}

# What is kept apart, and what is not.

my $base = chat_body('tokens=2', user => 'base');
is(ask($base)->{cache}, 'MISS', 'base');
is(ask($base)->{cache}, 'HIT', 'base: again');
is(ask($base, uri => "$_$chat")->{cache}, 'HIT', "$_: the same")
    for qw{ /aio /open };
is(ask({ %$base, model => 'scripted' })->{cache}, 'HIT', 'the model by name');
is(ask({ %$base, stream => $false })->{cache}, 'HIT', 'stream: false');
is(ask({ %$base, metadata => { x => 1 } })->{cache}, 'HIT', 'unknown fields');
is(ask('{"temperature":0.0, "user":"base","messages":[{"content":'
       . '"script: tokens=2","role":"user"}] }')->{cache},
   'HIT', 'another spelling');

for my $more ({ user => 'other' }, { seed => 1 }, { seed => 2 },
              { max_tokens => 9 }, { top_p => 0.5 }, { top_k => 3 },
              { min_p => 0.1 }, { stop => 'w9' }, { stop => [ 'w', '9' ] },
              { stop => [ 'w9', 'x' ] }, { presence_penalty => 1 },
              { frequency_penalty => 1 }, { repetition_penalty => 1.1 },
              { logit_bias => { 5 => 1 } }, { logit_bias => { 5 => 2 } },
              { logprobs => $true }, { n => 2 }, { ignore_eos => $true },
              { logprobs => $true, top_logprobs => 1 },
              { thinking => { type => 'enabled' } },
              { thinking => { type => 'disabled' } },
              { seed => 1, temperature => 0.5 },
              { seed => 1, temperature => 0.7 })
{
    my $name = $t->encode($more);
    is(ask({ %$base, %$more })->{cache}, 'MISS', "$name: another");
    is(ask({ %$base, %$more })->{cache}, 'HIT', "$name: again");
}

for my $messages ([ [ user => 'ab' ] ], [ [ system => 'ab' ] ],
                  [ [ user => 'a' ], [ user => 'b' ] ],
                  [ [ user => 'a' ], [ assistant => 'b' ] ],
                  [ [ user => '' ], [ user => 'ab' ] ])
{
    my $body = { temperature => 0, messages => [ map {
        { role => $_->[0], content => $_->[1] } } @$messages ] };
    my $name = $t->encode($messages);
    is(ask($body)->{cache}, 'MISS', "$name: another");
    is(ask($body)->{cache}, 'HIT', "$name: again");
}

is(ask({ temperature => 0, prompt => $_ }, uri => $text)->{cache}, 'MISS',
   'a prompt: ' . $t->encode($_))
    for 'ab', [ 'a', 'b' ], [ 'ab', 'ab' ], [ 97, 98 ], [ [ 97 ], [ 98 ] ];

is(ask($base, uri => "/half$chat")->{cache}, 'MISS', 'another cache');
is(ask($base, uri => "/half$chat")->{cache}, 'HIT', 'another cache: again');

# Prices: none, or a share.

sub cost {
    my $l;
    $t->wait_for(sub { ($l) = $t->read_file('logs/cost.log') =~
                       /^r$id (.*)\n/m }, 5);
    return $l // '';
}

my $priced = chat_body('tokens=10 prompt_tokens=100 cached=50');
for my $case ([ '', 'MISS', '0.00019' ], [ '', 'HIT', '0' ],
              [ '/half', 'MISS', '0.00019' ], [ '/half', 'HIT', '0.000095' ])
{
    is(ask($priced, uri => "$case->[0]$chat")->{cache}, $case->[1],
       "price $case->[0]");
    is(cost(), $case->[2], "price $case->[0] $case->[1]");
}

is(ask($base, uri => "/$_$chat")->{cache}, 'MISS', "$_: a limit")
    for qw/ short narrow /;

# What is no business of the cache's.

my $r = ask({ %$base, temperature => 1 });
is("$r->{cache} $r->{ran}", 'BYPASS 1', 'sampled');
my %unset = %$base;
delete $unset{temperature};
is(ask(\%unset)->{cache}, 'BYPASS', 'no temperature');
is(ask({ %unset, seed => 7 })->{cache}, 'MISS', 'a seed');
is(ask({ %unset, seed => 7 })->{cache}, 'HIT', 'a seed: again');

for my $value ('no-cache', 'no-store', 'max-age=0, No-Cache', 'NO-STORE,x') {
    $r = ask($base, headers => { 'Cache-Control' => $value });
    is("$r->{cache} $r->{ran}", 'BYPASS 1', "Cache-Control: $value");
}

my $fresh = chat_body('tokens=3', user => 'fresh');
ask($fresh, headers => { 'Cache-Control' => 'no-store' });
is(ask($fresh)->{cache}, 'MISS', 'no-store: it was not kept');
is(ask($fresh, headers => { 'Cache-Control' => 'max-age=9' })->{cache}, 'HIT',
   'other Cache-Control');

$r = ask($base, uri => "/off$chat");
is("$r->{cache} $r->{ran}", 'none 1', 'off');
is(line(), '200 [-] 2/0/2/0 stop rank=[0]', 'off: variable');
is(ask({ n => 0, messages => [] })->{cache}, 'none', 'a bad request');
is(line(), '400 [-] -/-/-/- error rank=[-]', 'a bad request: variable');

# What is not whole is not kept.

for my $case ([ 'an error', 'error=queue', 429 ],
              [ 'failed', 'tokens=9 fail_after=5', 500 ],
              [ 'failed in a stream', 'tokens=9 fail_after=5', 200,
                stream => $true ])
{
    my ($what, $script, $status, %more) = @$case;
    for (1 .. 2) {
        $r = ask(chat_body($script, %more));
        is("$r->{status} $r->{cache} $r->{ran}", "$status MISS 1", $what);
    }
}

$r = ask(chat_body('error=queue'), uri => "/page$chat");
is("$r->{status} $r->{body}", '200 []', 'error_page leads elsewhere');

for my $stream (0, 1) {
    my $body = chat_body('tokens=1000 delay=5', user => "left$stream",
                         $stream ? (stream => $true) : ());
    my $n = $t->count('accepted');
    my $c = $t->connect();
    $t->send_request($c, 'POST', $chat, $body);
    $t->wait_for(sub { $t->count('accepted') > $n });
    select undef, undef, undef, 0.1;
    close $c->{sock};
    ok($t->wait_for(sub { $t->events() =~
                          /^finish .*reason=cancelled.*\n\z/m }), 'left');
    $n = $t->count('accepted');
    $c = $t->connect();
    $t->send_request($c, 'POST', $chat, $body);
    ok($t->wait_for(sub { $t->count('accepted') > $n }),
       'an answer that was left is not kept');
    close $c->{sock};
}

# More than is kept.

my $huge = chat_body('tokens=8000', logprobs => $true, top_logprobs => 20);
for (1 .. 2) {
    $r = ask($huge);
    is("$r->{status} $r->{cache} $r->{ran}", '200 MISS 1', 'too large');
    is($r->{json}{usage}{completion_tokens}, 8000, 'too large: whole');
}

# Many at once: each gets all, from a worker or the other.

my $burst = chat_body('tokens=100 delay=1', user => 'burst', stream => $true);
my @conns = map { $t->connect() } 1 .. 32;
$t->send_request($_, 'POST', $chat, $burst) for @conns;
my $want = join ' ', map { "w$_" } 1 .. 100;
my @bad = grep { $t->sse_text($t->read_response($_)->{body}) ne $want } @conns;
is(scalar @bad, 0, 'many at once');
close $_->{sock} for @conns;
@bad = grep { my $r = ask($burst);
              $r->{cache} ne 'HIT' || $t->sse_text($r->{body}) ne $want }
       1 .. 20;
is(scalar @bad, 0, 'both workers have it');

# HTTP/2, and a hit that the client reads slowly.

my $long = chat_body('tokens=5000', user => 'slow', stream => $true);
ask($long);
my $c = $t->connect();
setsockopt $c->{sock}, Socket::SOL_SOCKET(), Socket::SO_RCVBUF(), 65536;
$t->send_request($c, 'POST', $chat, $long, Connection => 'close');
select undef, undef, undef, 0.3;
$r = $t->read_response($c);
is($r->{headers}{'x-llm-cache'}, 'HIT', 'read slowly');
ok($t->sse_text($r->{body}) eq join(' ', map { "w$_" } 1 .. 5000),
   'read slowly: all of it');

# A long one is given piece by piece, as the client takes them: it may leave in
# the middle, and a reload waits for it.

sub slow {
    my $c = $t->connect($t->port('slow'));
    setsockopt $c->{sock}, Socket::SOL_SOCKET(), Socket::SO_RCVBUF(), 16384;
    $t->send_request($c, 'POST', $chat, $long, Connection => 'close',
                     'X-Request-Id' => 'r' . ++$id);
    $c->{first} = $t->read_response($c, on_data => sub { 'stop' })->{body};
    $c->{buf} = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        . $c->{buf};
    return $c;
}

$c = slow();
close $c->{sock};
like(line(), qr/^200 \[HIT\] .* cancelled /, 'left in the middle');

$c = slow();
$t->reload();
my $whole = $c->{first} . $t->read_response($c)->{body};
ok($t->sse_text($whole) eq join(' ', map { "w$_" } 1 .. 5000),
   'a reload: all of it');
like($whole, qr/\[DONE\]\n\n$/, 'a reload: to the end');
like(line(), qr/^200 \[HIT\] .* stop /, 'a reload: it ended');
ok($t->wait_for(sub { $t->workers() == 2 }), 'a reload: the old worker goes');

# A connection is kept for the next request.

$c = $t->connect();
for (1 .. 3) {
    $r = ask($base, conn => $c);
    is("$r->{cache} " . ($r->{headers}{connection} // ''), 'HIT keep-alive',
       'kept alive');
}

# Damaged files.

sub file {
    my @found;
    my $find;
    $find = sub {
        for my $f (glob "$_[0]/*") {
            -d $f ? $find->($f) : push @found, $f;
        }
    };
    $find->("$t->{dir}/cache");
    my ($newest) = sort { -M $a <=> -M $b } @found;
    return $newest;
}

sub emptied { system("rm -rf $t->{dir}/cache/*") }

emptied();
my $victim = chat_body('reasoning=2 tokens=9', user => 'victim');
$want = same(ask($victim)->{body});
my $file = file();
my $good = $t->read_file($file);
is(ask($victim)->{cache}, 'HIT', 'the file is there');
my $start = index($good, "\n", index $good, 'KEY: ') + 1;

sub damaged {
    my ($what, $bytes) = @_;
    $t->write_file($file, $bytes);
    my $r = ask($victim);
    is("$r->{status} $r->{cache}", '200 MISS', "$what: a miss");
    same_ok($r, $want, "$what: answered");
    $r = ask($victim);
    is("$r->{cache} " . (same($r->{body}) eq $want ? 'same' : 'different'),
       'HIT same', "$what: written anew");
}

damaged('empty', '');
damaged('cut in nginx\'s header', substr $good, 0, 100);
damaged('cut behind it', substr $good, 0, $start);
damaged('cut in the head', substr $good, 0, $start + 10);
damaged('one byte short', substr $good, 0, -1);
damaged('one byte more', "${good}x");
damaged('eight bytes more', $good . "\0" x 8);
damaged('rubbish', 'x' x length $good);
damaged('zeros', "\0" x length $good);

for (my $i = $start; $i < length $good; $i += 37) {
    my $bytes = $good;
    substr($bytes, $i, 1) ^= "\x10";
    damaged("byte $i", $bytes);
}
for my $i (0, 8, 40, 48, 52, 54, 56) {
    my $bytes = $good;
    substr($bytes, $i, 1) ^= "\x10";
    $t->write_file($file, $bytes);
    my $r = ask($victim);
    same_ok($r, $want, "header byte $i: answered");
    $t->write_file($file, $good);
}
damaged('the time', do { my $b = $good; substr($b, 8, 8) = pack 'q', 1; $b });

unlink $file;
is(ask($victim)->{cache}, 'MISS', 'gone');
is(ask($victim)->{cache}, 'HIT', 'gone: written anew');

# A directory that cannot be written.

emptied();
rename "$t->{dir}/cache", "$t->{dir}/moved";
$t->write_file('cache', 'no directory');
for (1 .. 2) {
    $r = ask($victim);
    is("$r->{status} $r->{cache}", '200 MISS', 'no room on disk');
    same_ok($r, $want, 'no room on disk: answered');
}
unlink "$t->{dir}/cache";
rename "$t->{dir}/moved", "$t->{dir}/cache";
is(ask($victim)->{cache}, 'MISS', 'room again');
is(ask($victim)->{cache}, 'HIT', 'room again: kept');

# A reload keeps it; a new master finds the files; another model does not.

$t->reload(drain => 1);
is(ask($victim)->{cache}, 'HIT', 'after a reload');

$t->stop('nginx', 'QUIT');
$t->nginx(conf(), workers => 2);
is(ask($victim)->{cache}, 'HIT', 'after a restart');

$t->stop('engine');
$t->engine('scripted', '--fingerprint', 'abc123');
ok($t->wait_for(sub { ask($base)->{status} == 200 }, 20), 'another engine');
is(ask($victim)->{cache}, 'MISS', 'another model');
is(ask($victim)->{cache}, 'HIT', 'another model: again');

$t->stop('engine');
$t->engine('scripted', '--fingerprint', 'abc123', '--context', 1000);
ok($t->wait_for(sub { ask(chat_body('tokens=1'))->{status} == 200 }, 20),
   'another context');
is(ask($victim)->{cache}, 'MISS', 'another context: another answer');

$t->stop('nginx', 'QUIT');
is(scalar(() = `find $t->{dir}/cache -name '*.??????????'`), 0,
   'nothing unfinished is left');

# Accounts: each has its own answers; a hit takes no limit, and is not given on
# credit where it costs something.

my $state = $t->write_file('state', '');
my %sha = map { $_ => sha256_hex("sk-$_") } qw/ a b /;
$t->write_file('accounts', "account a tokens=100t/m tokens_burst=100 "
    . "reserve=1 requests=2r/m requests_burst=2\nkey a $sha{a}\n"
    . "account b\nkey b $sha{b}\n");
my $ledger = "$t->{build}/llm-ledger credit --state $state";
is(system("$ledger b 0.0001 >/dev/null"), 0, 'credit');

(my $keys = conf()) =~ s/llm_engine e/llm_accounts %%DIR%%\/accounts
    zone=accounts:1m state=$state; $&/;
$t->nginx($keys, workers => 2);
ok($t->wait_for(sub { ask($base)->{status} == 401 }, 20), 'accounts');

sub as {
    my ($who, $body, $uri) = @_;
    return ask($body, uri => ($uri // '') . $chat,
               headers => { 'x-api-key' => "sk-$who" });
}

my $used = chat_body('tokens=10 prompt_tokens=150', user => 'limits');
is(as('a', $used)->{cache}, 'MISS', 'of an account');
is(as('a', $used)->{cache}, 'HIT', 'of an account: again') for 1 .. 5;
$t->error_ok(as('a', chat_body('tokens=1', user => 'limits')), 429,
             'the limit is used up');
is(as('a', $used)->{cache}, 'HIT', 'an answer that is there is none');

is(as('b', $used)->{cache}, 'MISS', 'of another account');
is(cost(), '0.00034', 'of another account: more than there was');
is(as('b', $used)->{cache}, 'HIT', 'no balance, no cost');
$t->error_ok(as('b', $used, '/half'), 402, 'no balance, no answer');
is(system("$ledger b 1 >/dev/null"), 0, 'more credit');
is(as('b', $used, '/half')->{cache}, 'MISS', 'answered again');
is(as('b', $used, '/half')->{cache}, 'HIT', 'answered again, from the cache');
is(system("$ledger -- b -2 >/dev/null"), 0, 'less credit');
$r = as('b', $used, '/half');
$t->error_ok($r, 402, 'an answer that costs is not given on credit');
is($r->{ran}, 0, 'nor computed');
$t->stop('nginx', 'QUIT');

# Configurations that are refused.

for my $case (
    [ 'server { llm_response_cache answers; }', '"llm_response_cache" zone "answers" is '
      . 'unknown' ],
    [ "$path llm_response_cache answers; llm_response_cache answers;",
      '"llm_response_cache" directive is duplicate' ],
    [ "$path llm_response_cache off; llm_response_cache answers;",
      '"llm_response_cache" directive is duplicate' ],
    [ "$path llm_response_cache answers cached=101%;",
      'invalid parameter "cached=101%"' ],
    [ "$path llm_response_cache answers cached=5;",
      'invalid parameter "cached=5"' ],
    [ "$path llm_response_cache answers cached=%;",
      'invalid parameter "cached=%"' ],
    [ "$path llm_response_cache answers cached=-1%;",
      'invalid parameter "cached=-1%"' ],
    [ "$path llm_response_cache answers price=1%;",
      'invalid parameter "price=1%"' ],
    [ "$path server { llm_response_cache off cached=1%; }",
      '"llm_response_cache" zone "off" is unknown' ],
    [ 'llm_response_cache;', 'invalid number of arguments in '
      . '"llm_response_cache"' ],
    [ "llm_response_cache_path $t->{dir}/x;", 'invalid number of arguments '
      . 'in "llm_response_cache_path"' ],
    [ "llm_response_cache_path $t->{dir}/x levels=1;",
      '"llm_response_cache_path" must have "keys_zone" parameter' ],
    [ "llm_response_cache_path $t->{dir}/x keys_zone=z:1k;",
      'is too small in' ],
    [ "$path server { llm_response_cache_path /tmp keys_zone=z:1m; }",
      '"llm_response_cache_path" directive is not allowed here' ],
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $t->config_test($conf);
    ok(!$ok && index($out, $want) >= 0, "refused: $want") or diag($out);
}

# What nginx itself says of its files, and of the configurations above.

$t->done(allow => qr/cache\ file\ ".*"\ (?:is\ too\ small|has\ md5\ collision
                     |has\ too\ long\ header)|Not\ a\ directory|\[emerg\]/x);
done_testing();
