#!/usr/bin/perl

# master_process off: everything works in one process, but for a reload, which
# is refused and changes nothing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;

my $t = Test::LLM->new();
my $chat = '/v1/chat/completions';

$t->engine('scripted');
$t->write_file('accounts', "account a tier=t\nkey a " . sha256_hex('sk-a')
               . "\n");
$t->write_file('state', '');
is(system("$t->{build}/llm-ledger credit --state $t->{dir}/state a 1"
          . ' >/dev/null'), 0, 'a balance');

sub start {
    $t->spawn('nginx', $t->nginx_cmd());
    ok($t->wait_for(sub { $t->listens($t->port('http')) }), 'nginx listens');
}

$t->config(<<'CONF');
    llm_engine e unix:%%SOCKET%%;
    llm_accounts accounts zone=a:1m state=%%DIR%%/state;
    llm_price hit=1 miss=1 output=1000;
    llm_prefix_zone zone=p:1m;
    llm_token_limit_zone $llm_account zone=t:1m rate=10000t/m;

    server {
        listen %%LISTEN%%;
        llm_route prefix=p;
        llm_token_limit zone=t;
        location / { llm_pass e; }
        location = /metrics { llm_metrics; }
        location = /ledger { llm_ledger; }
    }
CONF
my $conf = $t->read_file('nginx.conf')
    =~ s/master_process on/master_process off/r;
$t->write_file('nginx.conf', $conf);
start();

sub ask {
    return $t->request('POST', $chat, { stream => JSON::PP::true(),
        messages => [ { role => 'user', content =>
            'script: prompt_tokens=0 tokens=20' } ] },
        headers => { Authorization => 'Bearer sk-a' });
}

sub served {
    my ($what, $balance) = @_;
    my $r = ask();
    like($r->{body}, qr/w20.*\[DONE\]/s, "$what: a stream");
    $r = $t->request('GET', '/ledger');
    is($r->{json}{accounts}[0]{balance_usd} // 'none', $balance,
       "$what: the balance");
    like($t->request('GET', '/metrics')->{body}, qr/^llm_engine_up\{.*\} 1$/m,
         "$what: metrics");
}

ok($t->wait_for(sub { ask()->{status} == 200 }), 'it serves');
served('at first', '0.96');

kill 'HUP', $t->pid('nginx');
ok($t->wait_for(sub { $t->read_file('logs/error.log') =~
    /\[emerg\] .*"master_process off" cannot be reloaded/ }),
   'a reload is refused');
served('after that', '0.94');

kill 'QUIT', $t->pid('nginx');
ok($t->wait_for(sub { !$t->alive('nginx') }), 'it ends');
start();
ok($t->wait_for(sub { ask()->{status} == 200 }), 'it serves again');
served('started again', '0.9');

$t->done(allow => qr/"master_process off" cannot be reloaded/);
done_testing();
