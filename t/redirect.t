#!/usr/bin/perl

# What one request of a client does in more than one place: error_page with a
# named location, mirror.  What was held in the first is not held twice, and
# what was answered in each is paid, once.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use Test::LLM;
use Test::More;

my $t = Test::LLM->new();
my $dir = $t->dir();
my $chat = '/v1/chat/completions';
my $ledger = "$t->{build}/llm-ledger";

$t->write_file('keys', join '', map {
    "account $_ @{[ $_ eq 'one' ? 'concurrency=1' : '' ]}\n"
    . "key $_ " . sha256_hex("key of $_") . "\n"
} qw/ one rich /);
$t->write_file('state', '');
system("$ledger credit --state $dir/state rich 100 >/dev/null") == 0
    or die 'credit';

$t->engine('scripted');
$t->engine('scripted', { name => 'two' });
$t->spawn('foreign', $^X, "$FindBin::Bin/lib/foreign.pl", $t->port('foreign'),
          "$dir/logs/foreign.log");
ok($t->wait_for(sub { $t->listens($t->port('foreign')) }), 'another server');

$t->nginx(<<'CONF', workers => 2);
    llm_engine e unix:%%SOCKET%%;
    llm_engine two unix:%%SOCKET:two%%;
    llm_accounts keys zone=keys:1m state=state;
    llm_token_limit_zone $llm_account zone=tokens:1m rate=1t/m;
    llm_price hit=0 miss=0 output=1000000;

    server {
        listen %%LISTEN%%;
        llm_meter on;

        location /gone/ { proxy_pass http://127.0.0.1:1/; error_page 502 = @f; }
        location /away/ { proxy_pass http://127.0.0.1:1/; error_page 502 = @e; }
        location /held/ {
            llm_token_limit zone=tokens burst=1000 reserve=900;
            proxy_pass http://127.0.0.1:1/; error_page 502 = @held;
        }
        location @held {
            llm_token_limit zone=tokens burst=1000 reserve=900;
            llm_pass two;
        }
        location @f { proxy_pass http://127.0.0.1:%%PORT:foreign%%; }
        location @e { llm_pass e; error_page 500 = @two; }
        location @two { llm_pass two; }
        location /fails/ { llm_pass e; error_page 500 = @two; }
        location /mirror/ { mirror /copy; llm_pass e; }
        location = /copy { internal; rewrite ^ /x/v1/chat/completions break;
                           llm_pass two; }
    }
CONF

sub ask {
    my ($uri, $who, $script) = @_;

    return $t->request('POST', "$uri$chat", {
        max_tokens => 2000,
        messages => [ { role => 'user', content => "script: $script" } ] },
        headers => { 'x-api-key' => "key of $who" });
}

sub balance {
    my ($b) = qx($ledger balance --state $dir/state 2>/dev/null)
              =~ /^rich (\S+)$/m;
    return $b;
}

# One request at a time, and it is one.

for my $n (1, 2) {
    is(ask('/gone', 'one', 'x')->{status}, 200, "another server, time $n");
    is(ask('/away', 'one', 'tokens=2')->{status}, 200, "an engine, time $n");
}

is(ask('/held', 'one', 'tokens=2')->{status}, 200, 'tokens are held once');

# Each place that answers is paid.

is(ask('/fails', 'rich', 'tokens=9 fail_after=3')->{status}, 500,
   'both fail, with 3 tokens each');
is(balance(), 100, 'neither is paid');
is(ask('/mirror', 'rich', 'tokens=5')->{status}, 200, 'a mirror');
ok($t->wait_for(sub { balance() == 90 }), 'both are paid')
    or diag(balance());

my @ids = $t->read_file('state') =~ /^L1 charge \S+ \S+ (\S+) rich/mg;
like("@ids", qr/^([0-9a-f]{32}) \1-2$/,
     'by the request\'s id');
is(qx($ledger balance --state $dir/state 2>&1 >/dev/null), '',
   'none of them twice');

$t->done();
done_testing();
