#!/usr/bin/perl

# llm_token_limit_zone, llm_token_limit and the limits of accounts: what is
# reserved, settled and told; that the promised bounds hold under concurrency;
# workers that are killed.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my $true = JSON::PP::true();

# Bad arguments, in `nginx -t`.

my $dry = Test::LLM->new();
my $zone = 'llm_token_limit_zone $uri zone=z:1m rate=5t/s';

for my $case (
    [ 'llm_token_limit_zone $uri zone=z:1m;',
      'invalid number of arguments in "llm_token_limit_zone"' ],
    [ 'llm_token_limit_zone $uri zone=z:1m rate=5t/s x;',
      'invalid number of arguments' ],
    [ 'llm_token_limit_zone $nothing zone=z:1m rate=5t/s;',
      'unknown "nothing" variable' ],
    [ 'llm_token_limit_zone $uri zone=z rate=5t/s;',
      'invalid zone size "zone=z"' ],
    [ 'llm_token_limit_zone $uri zone=z:1k rate=5t/s;',
      'zone "zone=z:1k" is too small' ],
    [ 'llm_token_limit_zone $uri zone=z:1m zone=y:1m;',
      '"llm_token_limit_zone" must have "rate" parameter' ],
    [ 'llm_token_limit_zone $uri rate=5t/s rate=5t/s;',
      '"llm_token_limit_zone" must have "zone" parameter' ],
    (map { [ "llm_token_limit_zone \$uri zone=z:1m rate=$_;",
             qq(invalid rate "rate=$_", it must be as 500t/s or 30000t/m) ] }
         '', qw(5 5t 5r/s 5t/h 0t/s -5t/s 1.5t/m 9999999999999t/s)),
    [ 'llm_token_limit_zone $uri zone=z:1m burst=5;',
      'invalid parameter "burst=5"' ],
    [ "$zone; $zone;", 'duplicate zone "z"' ],
    [ "limit_req_zone \$uri zone=z:1m rate=1r/s; $zone;",
      'already declared for a different use' ],
    [ "server { $zone; }",
      '"llm_token_limit_zone" directive is not allowed here' ],
    [ "$zone; llm_token_limit;", 'invalid number of arguments' ],
    [ "$zone; llm_token_limit burst=5;",
      '"llm_token_limit" must have "zone" parameter' ],
    [ "$zone; llm_token_limit zone=;", 'invalid parameter "zone="' ],
    (map { [ "$zone; llm_token_limit zone=z $_;",
             qq(invalid parameter "$_") ] }
         qw(burst=0 burst=x burst= burst=-1 burst=1000000000001 reserve=0
            reserve=all reserve= reserve=fully reserve=-1 dryrun dry_run=on
            nodelay)),
    [ "$zone; llm_token_limit zone=z; llm_token_limit zone=z burst=9;",
      '"llm_token_limit" directive is duplicate' ],
    [ 'llm_token_limit zone=nowhere;',
      'zero size shared memory zone "nowhere"' ],
    [ "$zone; server { location / { if (\$uri) { llm_token_limit zone=z; } } }",
      '"llm_token_limit" directive is not allowed here' ],
    [ join('', map { "llm_token_limit_zone \$uri zone=z$_:1m rate=5t/s;"
                     . "llm_token_limit zone=z$_;" } 1 .. 8),
      'more than 7 of "llm_token_limit" at one level' ],
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $dry->config_test($conf);
    ok(!$ok && $out =~ /\Q$want\E/, "refused: $conf") or diag($out);
}

my ($ok, $out) = $dry->config_test(<<'CONF');
    server { llm_token_limit zone=a; llm_token_limit zone=b burst=1 dry_run;
             location / { llm_token_limit zone=b reserve=5 burst=7; } }
    llm_token_limit_zone $uri$arg_x zone=a:1m rate=1000000000000t/s;
    llm_token_limit_zone "" rate=1t/m zone=b:32k;
CONF
ok($ok, 'good ones') or diag($out);

# What is counted.  A token a minute, so that nothing flows out meanwhile.

my $t = Test::LLM->new();

$t->write_file('accounts', join '', map {
    my ($name, $rest) = @$_;
    "account $name $rest\nkey $name " . sha256_hex($name) . "\n"
} [ 'plain', '' ],
  [ 'req', 'requests=3r/m' ],
  [ 'reqb', 'requests=3r/m requests_burst=1' ],
  [ 'tok', 'tokens=1t/m tokens_burst=1000 reserve=full' ],
  [ 'guess', 'tokens=1t/m tokens_burst=1000 reserve=10' ],
  [ 'conc', 'concurrency=2' ],
  [ 'all', 'requests=60r/m tokens=1t/m tokens_burst=5000 concurrency=5' ]);

$t->engine('scripted', '--model', 'tiny', '--context', 20000);

my $conf = <<'CONF';
    llm_engine e unix:%%SOCKET%%;
    llm_token_limit_zone $http_x_key zone=slow:1m rate=1t/m;
    llm_token_limit_zone $http_x_other zone=other:1m rate=1t/m;
    llm_token_limit_zone $http_x_key zone=fast:1m rate=1000t/s;
    llm_token_limit_zone $http_x_key zone=sec:1m rate=100t/s;
    log_format limit '$http_x_id $status [$llm_token_limit_status]';

    server {
        listen %%LISTEN%%;
        access_log logs/limit.log limit;

        location / { llm_pass e; }
        location /full/ { llm_token_limit zone=slow burst=1000 reserve=full;
                          llm_pass e; }
        location /part/ { llm_token_limit zone=slow burst=1000 reserve=100;
                          llm_pass e; }
        location /rate/ { llm_token_limit zone=slow; llm_pass e; }
        location /huge/ { llm_token_limit zone=slow burst=1000000 reserve=full;
                          llm_pass e; }
        location /some/ { llm_token_limit zone=slow burst=100000;
                          llm_pass e; }
        location /ctx/ { llm_token_limit zone=slow burst=1000000 reserve=full;
                         llm_max_context 5000; llm_max_tokens 400;
                         llm_pass e; }
        location /two/ { llm_token_limit zone=slow burst=2000 reserve=full;
                         llm_token_limit zone=other burst=1000 reserve=full;
                         llm_pass e; }
        location /dry/ { llm_token_limit zone=slow burst=1000 reserve=full
                                         dry_run; llm_pass e; }
        location /sec/ { llm_token_limit zone=sec burst=600 reserve=full;
                         llm_pass e; }
        location /page/ { llm_token_limit zone=slow burst=1 reserve=full;
                          error_page 429 /sorry; llm_pass e; }
        location /sorry { return 200 "sorry\n"; }
    }

    server {
        listen %%LISTEN:inherit%%;
        llm_token_limit zone=slow burst=777 reserve=full;
        location / { llm_pass e; }
        location /own/ { llm_token_limit zone=other burst=555 reserve=full;
                         llm_pass e; }
    }
CONF

$t->nginx($conf, workers => 2);

my $ids = 0;
my $chat = 'v1/chat/completions';

sub ask {
    my ($uri, $key, $script, %opt) = @_;
    my %h = (%{ $opt{headers} // {} }, 'X-Id' => 'r' . ++$ids);

    $h{'X-Key'} = $key if defined $key;
    my $r = $t->request('POST', "$uri$chat", {
        messages => [ { role => 'user', content => "script: $script" } ],
        %{ $opt{body} // {} } }, headers => \%h, port => $opt{port});
    $r->{id} = "r$ids";
    return $r;
}

# The bound of such a request: bytes, what a template may add, and the answer.

sub bound {
    my ($script, $max, $n) = @_;

    return length("script: $script") + 2 * 64 + ($n // 1) * $max;
}

sub left { $_[0]{headers}{'x-ratelimit-remaining-tokens'} // 'none' }

sub status_of {
    my ($r) = @_;
    my $s;

    $t->wait_for(sub {
        ($s) = $t->read_file('logs/limit.log') =~ /^$r->{id} \d+ \[(.*)\]$/m;
        defined $s;
    }, 5);
    return $s;
}

sub refused {
    my ($r, $what, $message) = @_;
    my $e = ref $r->{json} ? $r->{json}{error} : {};

    is($r->{status}, 429, "$what: 429");
    is($e->{type} // '', 'rate_limit_error', "$what: type");
    like($e->{message} // '', $message, "$what: message") if $message;
    like($r->{headers}{'retry-after'} // '',
         qr/^(?:[1-9]|[1-9]\d|1[01]\d|120)$/, "$what: Retry-After");
}

my $s = 'tokens=7 prompt_tokens=30';
my $b = bound($s, 50);
my %m = (body => { max_tokens => 50 });

for my $stream (0, 1) {
    my $k = "count$stream";
    my %o = (body => { max_tokens => 50, $stream ? (stream => $true) : () });
    my $r = ask('/full/', $k, $s, %o);

    is($r->{status}, 200, "stream $stream: admitted");
    is(left($r), 1000 - $b, "stream $stream: all that it may use is reserved");
    is($r->{headers}{'x-ratelimit-limit-tokens'}, 1000,
       "stream $stream: the limit");
    like($r->{headers}{'x-ratelimit-reset-tokens'}, qr/^\dh\d+m(\d+|0)s$/,
         "stream $stream: the reset");
    ok(!grep({ /requests/ } keys %{ $r->{headers} }),
       "stream $stream: no limit of requests");
    is(status_of($r), 'PASSED', "stream $stream: status");

    $r = ask('/full/', $k, $s, %o);
    is(left($r), 1000 - 37 - $b, "stream $stream: settled on what was used");
    is(left(ask('/full/', "$k'", $s, %o)), 1000 - $b,
       "stream $stream: another key");
}

my $r = ask('/full/', undef, $s, %m);
is($r->{status} . left($r), '200none', 'an empty key is not limited');
is(status_of($r), '-', 'an empty key: status');
is(left(ask('/', 'count0', $s, %m)), 'none', 'no limit here');
is(left($t->request('GET', '/full/v1/models', undef,
                    headers => { 'X-Key' => 'm' })), 'none',
   'models are not limited');

# Refusals

ask('/full/', 'r', 'tokens=1 prompt_tokens=700', %m);
$r = ask('/full/', 'r', $s, body => { max_tokens => 400 });
refused($r, 'used up', qr/The limit of 1000 tokens is reached, 299 are left: /);
is($r->{json}{error}{code}, 'rate_limit_exceeded', 'used up: code');
is($r->{headers}{'retry-after'}, 120, 'used up: at most 120 seconds');
is(left($r), 299, 'used up: remaining');
is($r->{headers}{'x-should-retry'}, undef, 'used up: a retry may help');
is(status_of($r), 'REJECTED', 'used up: status');
is(left(ask('/full/', 'r', 'tokens=1 prompt_tokens=1', body => {
    max_tokens => 1 })), 299 - bound('tokens=1 prompt_tokens=1', 1),
   'a refusal costs nothing, and less is admitted');

$r = ask('/full/', 'never', $s, body => { max_tokens => 900 });
refused($r, 'too large', qr/may use \d+ tokens, and the limit allows 1000 at/);
is($r->{headers}{'x-should-retry'}, 'false', 'too large: no retry helps');
is(left($r), 1000, 'too large: remaining');

$r = ask('/page/', 'p', $s, %m);
is("$r->{status} $r->{body}", "429 sorry\n", 'error_page');

ask('/sec/', 'w', 'prompt_tokens=550 tokens=1', %m);
$r = ask('/sec/', 'w', $s, body => { max_tokens => 200 });
refused($r, 'waiting', qr/try again in [1-4] s/);
cmp_ok($r->{headers}{'retry-after'}, '<=', 4, 'waiting: as long as it takes');
sleep $r->{headers}{'retry-after'};
is(ask('/sec/', 'w', $s, body => { max_tokens => 200 })->{status}, 200,
   'waiting: long enough');

# What a request may use

for my $case ([ 'choices', { n => 3, max_tokens => 50 }, bound($s, 50, 3) ],
              [ 'no max_tokens', {}, 20000 ],
              [ 'more than the context', { max_tokens => 30000 }, 20000 ],
              [ 'choices, no max_tokens', { n => 2 }, 40000 ])
{
    my ($what, $body, $want) = @$case;
    $r = ask('/huge/', $what, $s, body => $body);
    is(1000000 - left($r), $want, "bound: $what");
}

is(1000000 - left(ask('/ctx/', 'ctx', $s)), bound($s, 400),
   'bound: llm_max_tokens');
is(1000000 - left(ask('/ctx/', 'ctx2', 'x' x 9000, body => {
    max_tokens => 300 })), 5000, 'bound: llm_max_context');

sub complete {
    my ($key, $prompt, %body) = @_;
    my $r = $t->request('POST', '/huge/v1/completions', {
        prompt => $prompt, %body }, headers => { 'X-Key' => $key });
    return 1000000 - left($r);
}

is(complete('c1', 'a b c', max_tokens => 9), 5 + 64 + 9, 'bound: a text');
is(complete('c2', [ 1 .. 20 ], max_tokens => 9), 20 + 64 + 9, 'bound: ids');
is(complete('c3', [ 'a', 'bcd' ], max_tokens => 9, n => 2),
   4 + 2 * 64 + 4 * 9, 'bound: prompts and choices');
is(complete('c4', 'a b c', max_tokens => 0, echo => $true), 5 + 64,
   'bound: scoring');

# A part is reserved, the rest is owed.

is(left(ask('/part/', 'd', 'tokens=300 prompt_tokens=200', body => {
    max_tokens => 900 })), 900, 'reserve=100');
is(left(ask('/part/', 'd', 'tokens=500 prompt_tokens=200', body => {
    max_tokens => 900 })), 400, 'reserve=100: settled on 500');
refused($r = ask('/part/', 'd', $s, %m), 'in debt', qr/0 are left/);
is(left($r), 0, 'in debt: remaining is never negative');
is(left(ask('/part/', 'small', 'tokens=1', body => { max_tokens => 1 })),
   900, 'no more is reserved than N');
is(left(ask('/some/', 'n', $s)), 100000 - 1024, 'reserve: 1024 unless told');
is(left(ask('/some/', 'n2', $s, body => { max_tokens => 9 })),
   100000 - bound($s, 9), 'and not more than a request may use');
is(left(ask('/rate/', 'b', 'tokens=1 prompt_tokens=1')), 0,
   'burst: the rate unless told, and not more is reserved');

# Several at once; what one refuses costs nothing in the others.

my %two = (headers => { 'X-Other' => 'o' }, %m);
ask('/two/', 'a', 'tokens=1 prompt_tokens=399', %two);
is(left(ask('/two/', 'b', $s, %two)), 600 - $b, 'two limits: the tightest');
ask('/two/', 'c', 'tokens=1 prompt_tokens=499', %two);
refused($r = ask('/two/', 'c', $s, %two), 'two limits: the second');
is(left($r), 63, 'two limits: that of the one that refuses');
is(left(ask('/two/', 'c', $s, %m)), 1500 - $b,
   'two limits: the first got all back');

# dry_run

ask('/full/', 'dry', 'tokens=1 prompt_tokens=899', %m);
$r = ask('/dry/', 'dry', $s, %m);
is($r->{status}, 200, 'dry_run: admitted');
is(left($r), 'none', 'dry_run: the client is not told');
is(status_of($r), 'REJECTED_DRY_RUN', 'dry_run: status');
ok($t->read_file('logs/error.log') =~
   /\[warn\].*limiting tokens, dry run, 100 of 1000 left, by zone "slow"/,
   'dry_run: logged');
$r = ask('/dry/', 'dry2', $s, %m);
is(status_of($r), 'PASSED', 'dry_run: within the limit');
is(left(ask('/full/', 'dry2', $s, %m)), 1000 - 37 - $b,
   'dry_run: counted within the limit');

# Ends of all kinds

for my $case ([ 'refused by the engine', 'error=queue', 0 ],
              [ 'failed', 'tokens=50 fail_after=10 prompt_tokens=20', 0 ],
              [ 'a bad parameter', '', 0, { n => 0 } ])
{
    my ($what, $script, $used, $body) = @$case;
    cmp_ok(ask('/full/', $what, $script, body => { max_tokens => 50,
           %{ $body // {} } })->{status}, '>=', 400, "$what");
    is(left(ask('/full/', $what, $s, %m)), 1000 - $used - $b,
       "$what: $used used");
}

my $failed = 'tokens=50 prompt_tokens=20 fail_after=';
for my $case ([ 'failed in a stream', 10, 30 ], [ 'failed at once', 0, 0 ]) {
    my ($what, $after, $used) = @$case;
    like(ask('/full/', $what, $failed . $after, body => {
        max_tokens => 50, stream => $true })->{body}, qr/"error"/, $what);
    is(left(ask('/full/', $what, $s, %m)), 1000 - $used - $b,
       "$what: $used used");
}

# A stream that is left after `n` tokens.

sub stream {
    my ($uri, $key, $script, $n, %body) = @_;
    my $c = $t->connect();

    $t->send_request($c, 'POST', "$uri$chat", { stream => $true, messages => [
        { role => 'user', content => "script: $script" } ], %body },
        'X-Key' => $key, Authorization => "Bearer $key");
    my $r = $t->read_response($c, on_data => sub {
        my ($data, $r) = @_;
        my $seen = () = $r->{body} =~ /"content":"[^"]/g;
        return $seen >= $n ? 'stop' : '';
    });
    $r->{seen} = () = $r->{body} =~ /"content":"[^"]/g;
    return ($c, $r);
}

my ($c, $first) = stream('/full/', 'gone', 'tokens=400 delay=20', 5,
                         max_tokens => 400);
is($first->{status}, 200, 'a client that leaves');
close $c->{sock};
ok($t->wait_for(sub {
    left(ask('/full/', 'gone', 'tokens=0', body => { max_tokens => 1 })) > 700
}), 'a client that leaves: the rest came back');

# Inheritance

is($t->request('POST', "/$chat", { messages => [ { role => 'user',
    content => "script: $s" } ], max_tokens => 50 },
    port => $t->port('inherit'),
    headers => { 'X-Key' => 'i', 'X-Other' => 'i' })
   ->{headers}{'x-ratelimit-limit-tokens'}, 777, 'inherited');
is($t->request('POST', "/own/$chat", { messages => [ { role => 'user',
    content => "script: $s" } ], max_tokens => 50 },
    port => $t->port('inherit'),
    headers => { 'X-Key' => 'i', 'X-Other' => 'i' })
   ->{headers}{'x-ratelimit-limit-tokens'}, 555, 'replaced, not added');

# Reloads

ask('/full/', 'keep', 'tokens=1 prompt_tokens=499', %m);
($c, $first) = stream('/full/', 'keep', 'tokens=30 delay=40', 3,
                      max_tokens => 100);
$t->config($conf =~ s/zone=slow:1m rate=1t/zone=slow:1m rate=2t/r,
           workers => 2);
$t->reload();
$r = ask('/full/', 'keep', 'tokens=1 prompt_tokens=1', body => {
    max_tokens => 1 });
is($r->{status}, 200, 'reload: what was used is still known');
is(left($r), 500 - bound('tokens=30 delay=40', 100)
   - bound('tokens=1 prompt_tokens=1', 1), 'reload: and what runs');
while ($t->fill($c, time() + 5) > 0) { }
ok($t->wait_for(sub {
    left(ask('/full/', 'keep', 'tokens=0 prompt_tokens=0', body => {
        max_tokens => 1 })) > 300;
}), 'reload: settled by the old worker');

$t->config($conf =~ s/http_x_key zone=slow/http_x_id zone=slow/r,
           workers => 2);
kill 'HUP', $t->pid('nginx');
ok($t->wait_for(sub { $t->read_file('logs/error.log') =~
    /"slow" uses the "\$http_x_id" key while previously it used the "\$http_x_k/
}), 'reload: another key is refused');
$t->config($conf, workers => 2);
$t->reload(drain => 1);

# A worker that is killed, or told to stop at once: what was used so far is
# settled, by its successor or by itself.

my @streams;
my $each = bound('tokens=4000 delay=50 prompt_tokens=100', 4000);
my $probe = bound('tokens=0 prompt_tokens=1', 1);

sub probe {
    my ($key) = @_;
    my $r = ask('/huge/', $key, 'tokens=0 prompt_tokens=1',
                body => { max_tokens => 1 });
    return left($r);
}

for my $signal (qw/ KILL TERM /) {
    my ($what, @rest) = "$signal of both workers";

    @streams = map {
        [ stream('/huge/', $signal, 'tokens=4000 delay=50 prompt_tokens=100',
                 4, max_tokens => 4000) ]
    } 1 .. 4;

    is(probe($signal), 1000000 - 4 * $each - $probe,
       "$what: four hold all that they may use");

    my @old = $t->workers();
    kill $signal, @old;
    ok($t->wait_for(sub { (grep { my $w = $_; !grep { $_ == $w } @old }
                           $t->workers()) == 2 }), "$what: new ones");

    my $seen = 0;
    for my $p (@streams) {
        my ($c, $r) = @$p;
        while ($t->fill($c, time() + 2) > 0) { }
        $seen += () = "$r->{body}$c->{buf}" =~ /"content":"[^"]/g;
    }

    my $rest;
    ok($t->wait_for(sub {
        ($rest = eval { probe($signal) } // 'none') ne 'none';
    }), "$what: served again");

    my $used = 1000000 - $probe - $rest - 1;
    cmp_ok($used, '>=', 4 * 100 + $seen,
           "$what: all that clients saw is counted");
    cmp_ok($used, '<=', 4 * 100 + $seen + 4 * 3,
           "$what: and no more than that ($used, seen $seen)");
}

# Limits of accounts

my $accounts = 'llm_accounts %%DIR%%/accounts zone=acc:1m;';
$t->config($conf =~ s/(llm_engine .*\n)/$1 $accounts/r, workers => 2);
$t->reload(drain => 1);

sub own {
    my ($account, $script, %body) = @_;

    return ask('/', undef, $script, body => { max_tokens => 50, %body },
               headers => { Authorization => "Bearer $account" });
}

sub requests_left { $_[0]{headers}{'x-ratelimit-remaining-requests'} // 'none' }

$r = own('plain', $s);
is(join(' ', $r->{status}, left($r), requests_left($r)), '200 none none',
   'an account without limits');

for my $i (1 .. 3) {
    $r = own('req', $s);
    is("$r->{status} " . requests_left($r), '200 ' . (3 - $i),
       "requests: number $i");
}
is($r->{headers}{'x-ratelimit-limit-requests'}, 3, 'requests: the limit');
like($r->{headers}{'x-ratelimit-reset-requests'}, qr/^(?:59\.\d+s|1m0s)$/,
     'requests: the reset');
is(left($r), 'none', 'requests: none of tokens');
refused($r = own('req', $s), 'requests: the fourth',
        qr/The limit of 3 requests is reached, 0 are left: try again in \d+ s/);
is(requests_left($r), 0, 'requests: the fourth, remaining');
is(own('reqb', $s)->{status}, 200, 'requests_burst: the first');
refused(own('reqb', $s), 'requests_burst: the second');
is(own('plain', 'error=queue')->{status}, 429, 'an error of the engine');

is(left(own('tok', $s)), 1000 - $b, 'tokens: reserve=full');
is(left(own('tok', $s)), 1000 - 37 - $b, 'tokens: settled');
refused(own('tok', $s, max_tokens => 900), 'tokens: too many',
        qr/may use \d+ tokens, and the limit allows 1000 at once/);
is(left(own('guess', $s)), 990, 'tokens: reserve=10');

@streams = map { [ stream('/', 'conc', 'tokens=400 delay=20', 2) ] } 1, 2;
refused($r = own('conc', $s), 'concurrency',
        qr/^2 requests of this account are under way already/);
is($r->{json}{error}{code}, 'concurrency_limit_exceeded', 'concurrency: code');
is($r->{headers}{'retry-after'}, 1, 'concurrency: soon');
is(own('plain', $s)->{status}, 200, 'concurrency: of another account');
close $streams[0][0]{sock};
ok($t->wait_for(sub { own('conc', $s)->{status} == 200 }),
   'concurrency: one less');
kill 'KILL', $t->workers();
ok($t->wait_for(sub {
    my $r = eval { own('conc', $s) }; $r && $r->{status} == 200
}), 'concurrency: a worker that was killed');
is(own('all', $s)->{status}, 200, 'all three at once');

is($t->request('GET', '/v1/models', undef, headers => {
    Authorization => 'Bearer req' })->{status}, 200,
   'models are no requests here');

# 64 clients at once, on two workers.  What is used is at most what the rate
# lets through from before the first to after the last, and the burst.

$t->config($conf, workers => 2);
$t->reload(drain => 1);

sub clients {
    my ($n, $seconds, $uri, $script, $max) = @_;
    my $start = time();
    my @pipe;

    for my $i (1 .. $n) {
        pipe my $r, my $w or die "pipe: $!";
        my $pid = fork() // die "fork: $!";

        if ($pid == 0) {
            close $r;
            srand($i);
            my ($used, $ok, $no) = (0, 0, 0);
            my $c = $t->connect();
            while (time() < $start + $seconds) {
                my $text = ref $script ? $script->() : $script;
                my $r = $t->request('POST', "$uri$chat", { messages => [ {
                    role => 'user', content => "script: $text" } ],
                    max_tokens => $max }, conn => $c,
                    headers => { 'X-Key' => 'crowd' });
                if ($r->{status} == 200) {
                    $used += $r->{json}{usage}{total_tokens};
                    $ok++;
                } elsif ($r->{status} == 429) {
                    $no++;
                    sleep 0.02;
                } else {
                    print $w "bad $r->{status}\n";
                    last;
                }
            }
            print $w "$used $ok $no\n";
            close $w;
            POSIX::_exit(0);
        }

        close $w;
        push @pipe, [ $r, $pid ];
    }

    my ($used, $ok, $no, $bad) = (0, 0, 0, 0);
    for (@pipe) {
        my ($r, $pid) = @$_;
        while (my $line = <$r>) {
            if ($line =~ /^(\d+) (\d+) (\d+)$/) {
                $used += $1; $ok += $2; $no += $3;
            } else {
                $bad++;
            }
        }
        waitpid $pid, 0;
    }
    return ($used, $ok, $no, $bad, time() - $start);
}

$t->config($conf =~ s/server \{\n        listen %%LISTEN%%;\K/
        location \/crowd\/ { llm_token_limit zone=fast burst=3000 reserve=full;
                           llm_pass e; }
        location \/guess\/ { llm_token_limit zone=fast burst=3000 reserve=60;
                           llm_pass e; }/r, workers => 2);
$t->reload(drain => 1);

my ($sum, $good, $no, $bad, $time) = clients(64, 4, '/crowd/', sub {
    'prompt_tokens=20 tokens=' . (1 + int rand 80) . ' delay='
    . int rand 3 }, 80);
my $may = 1000 * $time + 3000;
is($bad, 0, '64 clients: 200 or 429');
cmp_ok($sum, '<=', $may, "64 clients: $sum tokens of $may");
cmp_ok($sum, '>', 0.5 * $may, '64 clients: and not far less');
cmp_ok($no, '>', 0, "64 clients: $good admitted, $no refused");

sleep 3;
my $cap = 20 + 120;
($sum, $good, $no, $bad, $time) = clients(64, 4, '/guess/',
    'prompt_tokens=20 tokens=120 batch=16 delay=20', 120);
$may = 1000 * $time + 3000;
is($bad, 0, 'reserve=60: 200 or 429');
cmp_ok($sum, '<=', $may + 64 * ($cap - 60),
       "reserve=60: $sum tokens, $may and at most ($cap - 60) for each");
cmp_ok($sum, '>', 0.5 * $may, 'reserve=60: and not far less');
cmp_ok($no, '>', 0, "reserve=60: $good admitted, $no refused");
cmp_ok($good, '>', 20, 'reserve=60: several at once');

# In the end nothing is held.

sleep 1;
ok($t->wait_for(sub {
    my $r = ask('/guess/', 'crowd', 'tokens=0 prompt_tokens=0', body => {
        max_tokens => 1 });
    $r->{status} == 200 && left($r) >= 3000 - 70;
}, 30), 'all flows out');

$t->done(allow => qr/exited on signal 9|uses the "\$http_x_id" key/);
done_testing();
