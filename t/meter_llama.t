#!/usr/bin/perl

# llm_meter in front of a real server that is not ours, llama.cpp's
# llama-server: what is counted is what it says itself, limits and prices apply,
# and a stream that its client leaves is settled.
#
#     LLAMA_SERVER=.../llama-server LLAMA_MODEL=FILE.gguf prove t/meter_llama.t
#
# Without the two there is nothing to test.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my ($server, $model) = @ENV{qw/ LLAMA_SERVER LLAMA_MODEL /};

plan(skip_all => 'LLAMA_SERVER=PATH and LLAMA_MODEL=FILE.gguf are not set')
    if !$server || !$model;

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';

$t->write_file('accounts', "account alice tier=paid\nkey alice "
               . sha256_hex('sk-alice') . "\n");
$t->write_file('state', '');
is(system("$t->{build}/llm-ledger credit --state $t->{dir}/state alice 1"
          . ' >/dev/null'), 0, 'a balance');

$t->spawn('llama', $server, '--model', $model, '--host', '127.0.0.1', '--port',
          $t->port('llama'), '--ctx-size', 2048, '--parallel', 2,
          '--threads', 1, '--slots', '--metrics');
ok($t->wait_for(sub {
    die 'llama-server did not start: ' . $t->read_file('logs/llama.err')
        if !$t->alive('llama');
    return $t->listens($t->port('llama'))
        && $t->request('GET', '/health', undef, port => $t->port('llama'))
           ->{status} == 200;
}, 120), 'llama-server');

my @log = qw/ model prompt_tokens cached_tokens completion_tokens finish_reason
              usage_source cost account /;
my $log = join ' ', map { "$_=[\$llm_$_]" } @log;

$t->nginx(<<"CONF", workers => 2);
    log_format meter '\$http_x_request_id status=[\$status] $log';
    access_log logs/meter.log meter;
    llm_accounts %%DIR%%/accounts zone=a:1m state=%%DIR%%/state;
    llm_token_limit_zone \$uri zone=tokens:1m rate=1t/m;
    llm_price hit=1 miss=10 output=100;

    server {
        listen %%LISTEN%%;
        proxy_buffering off;
        proxy_http_version 1.1;
        llm_meter on;

        location / { proxy_pass http://127.0.0.1:%%PORT:llama%%; }
        location /limited/ {
            llm_token_limit zone=tokens burst=400 reserve=full;
            proxy_pass http://127.0.0.1:%%PORT:llama%%/;
        }
        location = /own/metrics { llm_meter off; llm_metrics; }
        location = /own/ledger { llm_meter off; llm_ledger; }
    }
CONF

my $id = 0;

sub ask {
    my ($uri, $body, %opt) = @_;
    return $t->request('POST', $uri, $body, limit => 120, %opt, headers => {
        'X-Request-Id' => 'r' . ++$id, Authorization => 'Bearer sk-alice' });
}

sub logged {
    my $l;
    $t->wait_for(sub { ($l) = $t->read_file('logs/meter.log') =~
                       /^r$id (.*)\n/m }, 20);
    return { ($l // '') =~ /(\w+)=\[(.*?)\]/g };
}

# What its usage costs, in nanodollars.

sub price {
    my ($usage) = @_;
    my $hit = ($usage->{prompt_tokens_details} // {})->{cached_tokens} // 0;

    return $hit * 1000 + ($usage->{prompt_tokens} - $hit) * 10_000
        + $usage->{completion_tokens} * 100_000;
}

sub nano { sprintf '%.0f', $_[0] * 1e9 }

my $spent = 0;

sub counted {
    my ($usage, $name) = @_;
    my $l = logged();

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    is(join(' ', map { "$_=$l->{$_}" } qw/ status prompt_tokens
                                          completion_tokens usage_source /),
       "status=200 prompt_tokens=$usage->{prompt_tokens} completion_tokens="
       . "$usage->{completion_tokens} usage_source=reported",
       "$name: counted");
    is(nano($l->{cost}), price($usage), "$name: priced");
    $spent += price($usage);
    diag(join ' ', "$name:", map { "$_=$l->{$_}" } @log);
    return $l;
}

my %body = (model => 'other', temperature => 0, max_tokens => 24,
            messages => [ { role => 'user',
                            content => 'What is a falcon? ' x 4 } ]);

# JSON, twice: the second finds the prompt in that server's cache.

my $r = ask($chat, \%body);
is($r->{status}, 200, 'JSON') or diag($r->{body});
cmp_ok($r->{json}{usage}{completion_tokens}, '>', 0, 'JSON: an answer');
counted($r->{json}{usage}, 'JSON');
my $usage = $r->{json}{usage};

$r = ask($chat, \%body);
is($r->{json}{usage}{prompt_tokens}, $usage->{prompt_tokens}, 'JSON again');
my $l = counted($r->{json}{usage}, 'JSON again');
cmp_ok($l->{cached_tokens}, '>', 0, 'JSON again: found in the cache');

# Streams, with a usage and with llama-server's timings alone.

$r = ask($chat, { %body, stream => $true,
                  stream_options => { include_usage => $true } });
my ($last) = grep { ref && $_->{usage} } $t->sse($r->{body});
like($r->{body}, qr/data: \[DONE\]\n\n$/, 'a stream: whole');
counted($last->{usage}, 'a stream');
cmp_ok(scalar @{ $r->{chunks} }, '>', 3, 'a stream: as it comes');

$r = ask($chat, { %body, stream => $true });
$l = logged();
is("$l->{usage_source} $l->{prompt_tokens} $l->{completion_tokens}",
   "reported $usage->{prompt_tokens} $usage->{completion_tokens}",
   'a stream that says no usage');
$spent += nano($l->{cost});

# Completions, and what it calls them itself.

$r = ask('/v1/completions', { model => 'other', prompt => 'A falcon is',
                              max_tokens => 12, temperature => 0 });
counted($r->{json}{usage}, 'a completion');

$r = ask('/completion', { prompt => 'A heron is', n_predict => 9,
                          temperature => 0 });
$l = logged();
is($l->{completion_tokens}, $r->{json}{tokens_predicted}, 'its own way');
is($l->{prompt_tokens}, $r->{json}{tokens_evaluated}, 'its own way: prompt')
    or diag($r->{body});
$spent += nano($l->{cost});

# Its refusals cost nothing and pass as they are.

$r = ask($chat, { %body, messages => 'none' });
cmp_ok($r->{status}, '>=', 400, 'a bad request');
ok($r->{json}{error}, 'a bad request: its own words');
is(logged()->{cost}, 0, 'a bad request: costs nothing');

# A stream that is left: settled, and ended behind.

my $c = $t->connect();
$t->send_request($c, 'POST', $chat, { %body, stream => $true,
    max_tokens => 1500, ignore_eos => $true }, 'X-Request-Id' => 'r' . ++$id,
    Authorization => 'Bearer sk-alice');
my $seen = 0;
$t->read_response($c, limit => 120, on_data => sub {
    $seen += () = $_[0] =~ /"content":"[^"]/g;
    return $seen >= 5 ? 'stop' : '';
});
close $c->{sock};
$l = logged();
is($l->{finish_reason}, 'cancelled', 'left');
cmp_ok($l->{completion_tokens}, '>=', 5, 'left: tokens until then');
cmp_ok($l->{completion_tokens}, '<', 1000, 'left: no more');
cmp_ok(nano($l->{cost}), '>=', 500_000, 'left: they are paid');
diag(join ' ', 'left:', map { "$_=$l->{$_}" } @log);
$spent += nano($l->{cost});
ok($t->wait_for(sub {
    my $slots = $t->request('GET', '/slots', undef, port => $t->port('llama'));
    return ref $slots->{json} eq 'ARRAY'
        && !grep { $_->{is_processing} } @{ $slots->{json} };
}, 60), 'left: it computes no more');

# The limit: what is reserved comes back, what was used does not.

my $limited = "/limited$chat";
my ($used, $n) = (0, 0);

for (1 .. 20) {
    $r = ask($limited, \%body);
    last if $r->{status} != 200;
    $n++;
    $used += $r->{json}{usage}{total_tokens};
    counted($r->{json}{usage}, "limited $n");
}
$t->error_ok($r, 429, 'beyond the limit', code => 'rate_limit_exceeded');
cmp_ok($n, '>', 0, 'some were served');
my $left = $r->{headers}{'x-ratelimit-remaining-tokens'};
cmp_ok(abs(400 - $used - $left), '<=', 1, 'settled on what was used')
    or diag("$used used, $left left");
is(logged()->{cost}, 0, 'beyond the limit: costs nothing');
$t->error_ok($t->request('POST', $chat, \%body), 401, 'no key');

# All of it together.

$r = $t->request('GET', '/own/ledger');
is(nano($r->{json}{revenue_usd}), $spent, 'the day');
my ($balance) = grep { $_->{name} eq 'alice' } @{ $r->{json}{accounts} };
is(nano($balance->{balance_usd}), 1e9 - $spent, 'the balance');
like($t->request('GET', '/own/metrics')->{body},
     qr/^llm_completion_tokens_total\{model="other"\} [1-9]/m, 'metrics');

$t->done();
done_testing();
