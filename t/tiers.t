#!/usr/bin/perl

# nginx-conf/tiers.conf and its accounts: nginx takes them, and the tiers are
# what the file says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;

my $t = Test::LLM->new();
my $top = Test::LLM::top();
my ($crt, $key) =
    $t->tls() =~ /ssl_certificate (\S+); ssl_certificate_key (\S+);/;
my $conf = $t->read_file("$top/nginx-conf/tiers.conf");
my $n = 0;

$n += $conf =~ s/^ *listen \[::\].*\n//mg;
$n += $conf =~ s/listen 443 ssl/listen %%LISTEN%%; listen %%LISTEN:https%% ssl/;
$n += $conf =~ s/(ssl_certificate +)\S+;/$1$crt;/;
$n += $conf =~ s/(ssl_certificate_key +)\S+;/$1$key;/;
$n += $conf =~ s{unix:/\S+;}{unix:%%SOCKET%%;};
$n += $conf =~ s{/usr/share/llm-engine/usage-log}{%%TOP%%/nginx-conf/usage-log};
$n += $conf =~ s{access_log /\S+ }{access_log logs/usage.log };
$n += $conf =~ s{state=/\S+;}{state=%%DIR%%/state;};
is($n, 8, 'tiers.conf: found what to replace');

$t->write_file('llm.accounts', $t->read_file("$top/nginx-conf/tiers.accounts"));
$t->engine('scripted', '--model', 'tiny');
$t->nginx($conf, workers => 2);

sub ask {
    my ($key, $script, %body) = @_;

    return $t->request('POST', '/v1/chat/completions', { messages => [ {
        role => 'user', content => "script: $script" } ], %body },
        headers => $key ? { Authorization => "Bearer $key" } : {});
}

sub header { $_[0]{headers}{"x-ratelimit-$_[1]"} // 'none' }

my ($alice, $bob) = ('sk-example-alice', 'sk-example-bob');
my $script = 'tokens=7 prompt_tokens=1000 cached=400';

is(ask(undef, $script)->{status}, 401, 'nobody');

system("$t->{build}/llm-ledger credit --state @{[ $t->dir() ]}/state alice 0 "
       . '>/dev/null') == 0 or die 'credit';
$t->error_ok(ask($alice, $script), 402, 'no balance',
             code => 'insufficient_balance');
system("$t->{build}/llm-ledger credit --state @{[ $t->dir() ]}/state alice 5 "
       . '>/dev/null') == 0 or die 'credit';

my $r = ask($alice, $script, max_tokens => 100);
is($r->{status}, 200, 'paid');
is(header($r, 'limit-tokens'), 600000, 'paid: tokens');
is(header($r, 'limit-requests'), 'none', 'paid: no limit of requests');
is(($t->submits())[-1]{priority}, 10, 'paid: first in the queue');

$r = ask($bob, $script, max_tokens => 100);
is($r->{status}, 200, 'free');
is(header($r, 'limit-tokens'), 40000, 'free: tokens');
cmp_ok(header($r, 'remaining-tokens'), '<', 40000 - 100,
       'free: all is reserved');
is(header($r, 'limit-requests'), 200, 'free: requests');
is(($t->submits())[-1]{priority}, 0, 'free: no priority');

is((grep { ask($bob, $script, max_tokens => 10)->{status} == 200 } 1 .. 6), 5,
   'free: limit_req');
is((grep { ask($alice, $script, max_tokens => 10)->{status} == 200 } 1 .. 8), 8,
   'paid: no limit_req');

my $paid;
ok($t->wait_for(sub {
    my $day = $t->request('GET', '/ledger')->{json};
    ($paid) = grep { $_->{name} eq 'alice' } @{ $day->{accounts} };
    abs(5 - $paid->{revenue_usd} - $paid->{balance_usd}) < 1e-9;
}), 'what was served came off the balance');
is($paid->{tier}, 'paid', 'and is in the ledger');

my @lines;
ok($t->wait_for(sub {
    @lines = map { $t->decode($_) } split /\n/, $t->read_file('logs/usage.log');
    @lines == 18;
}), 'the usage log: who asked the model, and nobody else');
my ($ok) = grep { ($_->{status} // 0) == 200 } @lines;
is("$ok->{prompt_tokens} $ok->{cached_tokens} $ok->{completion_tokens}",
   '1000 400 7', 'the usage log: tokens');
my $full = 400 * 0.14 + 600 * 0.55 + 7 * 2.19;

# In the window of low prices it is half a nanodollar more than it can be.
ok((grep { abs($ok->{cost} - $_ * $full / 1e6) < 0.6e-9 } 1, 0.25),
   "the usage log: cost ($ok->{cost})");

$t->done();
done_testing();
