#!/usr/bin/perl

# Balances: llm_accounts' state=FILE.  Charges in the journal, credits while
# nginx runs, 402, reloads, restarts and two masters; damage; a full disk;
# workers and masters killed at any moment.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

# So that a worker can be given a limit on the size of its files.

$SIG{XFSZ} = 'IGNORE';

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $dir = $t->dir();
my $state = "$dir/state";
my $ledger = "$t->{build}/llm-ledger";

$t->write_file('accounts', join '', map {
    "account $_\nkey $_ " . sha256_hex("key of $_") . "\n"
} qw/ alice bob carol dave /);

sub conf {
    my (%opt) = @_;
    my $port = $opt{port} // 'http';
    my $size = $opt{size} // '1m';
    my $file = $opt{state} // 'state';

    return <<"CONF";
    llm_engine e unix:%%SOCKET%%;
    llm_accounts accounts zone=accounts:$size state=$file;

    server {
        listen %%LISTEN:$port%%;
        llm_price hit=0 miss=0 output=1000000;

        location / { llm_pass e; }
        location /free/ { llm_price off; llm_pass e; }
        location = /ledger { llm_ledger; }
    }
CONF
}

sub credit {
    my ($name, $amount, @more) = @_;
    my $out = qx($ledger credit --state $state @more -- $name $amount 2>&1);

    is($?, 0, "credit $name $amount") or diag($out);
}

sub balances {
    my %b = map { /^(\S+) (\S+)$/ ? ($1 => $2) : () }
        qx($ledger balance --state $state 2>/dev/null);
    return \%b;
}

sub chat {
    my ($who, $script, %opt) = @_;
    my $uri = ($opt{uri} // '') . '/v1/chat/completions';

    return $t->request('POST', $uri, {
        messages => [ { role => 'user', content => "script: $script" } ],
        stream => $opt{stream} // JSON::PP::false() },
        headers => { 'x-api-key' => "key of $who" }, port => $opt{port});
}

# What nginx takes for an account's balance, once a request of it was logged.

sub seen {
    my ($who) = @_;
    my $a;

    $t->wait_for(sub {
        my $day = $t->request('GET', '/ledger')->{json};
        ($a) = grep { $_->{name} eq $who } @{ $day->{accounts} };
    });
    return $a->{balance_usd};
}

sub records {
    my ($type) = @_;

    return map { my @f = split / /;
                 $f[1] eq $type ? { amount => $f[3], id => $f[4],
                                    account => $f[5] } : () }
           $t->read_file('state') =~ /^(L1 .*)$/mg;
}


# Bad files, in `nginx -t`.

my $dry = Test::LLM->new();
$dry->write_file('accounts', $t->read_file('accounts'));
mkdir $dry->dir() . '/folder';
$dry->write_file('many', '');
my $many = $dry->dir() . '/many';
system("for i in \$(seq 300); do $ledger credit --state $many "
       . "account\$i 1; done >/dev/null") == 0 or die 'credits';

for my $case (
    [ 'accounts zone=a:1m state=', qr/invalid parameter "state="/ ],
    [ 'accounts zone=a:1m state=folder',
      qr{open\(\) ".*/folder" failed \(21: Is a directory\)} ],
    [ 'accounts zone=a:1m state=none/state',
      qr{open\(\) ".*/none/state" failed \(2: No such file} ],
    [ 'accounts zone=a:1m state=/dev/null',
      qr{"/dev/null" is not a regular file} ],
    [ 'accounts zone=a:32k state=many',
      qr/no room for account "account\d+", the zone of llm_accounts is too/ ],
) {
    my ($ok, $out) = $dry->config_test("llm_accounts $case->[0];");
    ok(!$ok, "refused: $case->[0]");
    like($out, $case->[1], "message: $case->[0]");
}
my ($ok, $out)
    = $dry->config_test('llm_accounts accounts zone=a:1m state=many;');
ok($ok, 'a zone that is large enough') or diag($out);


# Accounts with a balance, without one, with nothing left.

$t->write_file('state', '');
credit('alice', 10);
credit('carol', 0);
$t->engine('scripted');
$t->nginx(conf(), workers => 2);

is(chat('alice', 'tokens=3')->{status}, 200, 'a balance');
is(balances()->{alice}, 7, 'is charged');
is(chat('bob', 'tokens=3')->{status}, 200, 'no balance');
is(balances()->{bob}, undef, 'is not charged');
$t->error_ok(chat('carol', 'tokens=3'), 402, 'nothing left',
             code => 'insufficient_balance');
$t->error_ok(chat('carol', 'tokens=3', stream => $true), 402,
             'nothing left, a stream', code => 'insufficient_balance');
is(chat('alice', 'tokens=2', stream => $true)->{status}, 200, 'a stream');
is(balances()->{alice}, 5, 'is charged');
is(chat('alice', 'tokens=2', uri => '/free')->{status}, 200, 'no price');
chat('alice', 'error=queue');
chat('alice', 'tokens=0');
is(balances()->{alice}, 5, 'nothing to charge');
is(scalar(my @n = records('charge')), 2, 'and no record of nothing');
is(seen('alice'), 5, 'nginx has the same');

# Requests that run at the same time may take it below zero, and no others.

my @conns = map {
    my $c = $t->connect();
    $t->send_request($c, 'POST', '/v1/chat/completions', {
        messages => [ { role => 'user',
                        content => 'script: tokens=4 delay=100' } ] },
        'x-api-key' => 'key of alice');
    $c
} 1 .. 3;
is($t->read_response($_)->{status}, 200, 'at the same time') for @conns;
is(balances()->{alice}, -7, 'below zero');
$t->error_ok(chat('alice', 'tokens=1'), 402, 'used up');
is(balances()->{alice}, -7, 'who is refused pays nothing');

# A credit counts for the next request.

credit('alice', 6);
$t->error_ok(chat('alice', 'tokens=1'), 402, 'not enough');
credit('alice', 2);
is(chat('alice', 'tokens=1')->{status}, 200, 'enough');
is(balances()->{alice}, 0, 'used up exactly');
$t->error_ok(chat('alice', 'tokens=1'), 402, 'zero is nothing');
credit('carol', 100);
is(chat('carol', 'tokens=1')->{status}, 200, 'carol');
credit('bob', 3);
is(chat('bob', 'tokens=5')->{status}, 200, 'the first credit of another');
is(balances()->{bob}, -2, 'begins a balance');

# Who leaves pays what was made.

my $c = $t->connect();
$t->send_request($c, 'POST', '/v1/chat/completions', {
    messages => [ { role => 'user', content => 'script: tokens=90 delay=20' } ],
    stream => $true }, 'x-api-key' => 'key of carol');
$t->read_response($c, on_data => sub { $_[0] =~ /w3/ ? 'stop' : '' });
close $c->{sock};
$t->wait_for(sub { balances()->{carol} < 99 });
my $left = balances()->{carol};
ok($left <= 96 && $left > 9, 'who leaves pays') or diag($left);

# In use: it cannot be made short.

like(qx($ledger compact --state $state 2>&1), qr/it is in use/,
     'no compact while nginx runs');

# A reload, and one that changes the size of the zone.

my $before = balances();
$t->reload(drain => 1);
is(seen('bob'), -2, 'kept over a reload');
$t->error_ok(chat('bob', 'tokens=1'), 402, 'and in force');
$t->config(conf(size => '2m'), workers => 2);
$t->reload(drain => 1);
$t->error_ok(chat('bob', 'tokens=1'), 402, 'another size');
is(seen('bob'), -2, 'read again');

# Another file under the same zone would be another account of the money.

$t->write_file('other', '');
$t->config(conf(size => '2m', state => 'other'), workers => 2);
kill 'HUP', $t->pid('nginx');
ok($t->wait_for(sub {
    $t->read_file('logs/error.log') =~ /other" is not the journal that this/;
}), 'another file is refused');
$t->error_ok(chat('bob', 'tokens=1'), 402, 'the old one stays');

# Two masters, as in a binary upgrade: each sees what the other charges.

my $two = Test::LLM->new();
$two->write_file('accounts', $t->read_file('accounts'));
(my $other = conf(port => 'two', state => $state)) =~
    s/%%SOCKET%%/$t->socket_path()/e;
$two->{ports}{$_} = $t->port('two') for qw/ http two /;
$two->nginx($other, workers => 2);

credit('dave', 4);
is(chat('dave', 'tokens=1', port => $t->port('two'))->{status}, 200,
   'by the second master');
is(chat('dave', 'tokens=1')->{status}, 200, 'by the first master');
chat('dave', 'tokens=2', port => $t->port('two'));
is(balances()->{dave}, 0, 'charged by both');
$t->error_ok(chat('dave', 'tokens=1'), 402, 'the first one knows');
$t->error_ok(chat('dave', 'tokens=1', port => $t->port('two')), 402,
             'the second one knows');
$two->done();

# Much at once, more than is read in one go.

credit('dave', 0.5);
my ($line) = (grep { / dave \w+$/ }
              $t->read_file('state') =~ /^(L1 credit .*)$/mg)[-1];
open my $f, '>>', $state or die "$state: $!";
print $f "$line\n" x 5000;
close $f or die "$state: $!";
is(chat('dave', 'tokens=1')->{status}, 200, 'much at once: a balance again');
is(seen('dave'), 2499.5, 'much at once: all of it');

# A start: torn, damaged and doubled records.

sub restart {
    $t->stop('nginx', 'QUIT');
    $t->{forced} = {};
    $_[0]->() if $_[0];
    unlink "$dir/nginx.pid";
    $t->nginx(conf(), workers => 2);
}

$before = balances();
my ($one) = $t->read_file('state') =~ /^(L1 charge .* carol .*\n)/m;
restart(sub {
    my $text = $t->read_file('state');
    (my $bad = $one) =~ s/ -/ -9/;
    my $at = index $text, "\n", length($text) / 2;
    substr $text, $at + 1, 0, $bad . $one . "\0" x 100;
    $t->write_file('state', $text . substr $one, 0, 20);
});
my $log = $t->read_file('logs/error.log');
like($log, qr/llm journal ".*state": byte \d+: its checksum is wrong, passed/,
     'a wrong checksum is named');
like($log, qr/llm journal ".*state": byte \d+: it is no record, passed over/,
     'and a hole');
like($log,
     qr/llm journal ".*state": \d+ records, 4 accounts, 2 damaged, 1 twice/,
     'all are counted');
like($log, qr/llm journal ".*state": 20 bytes at its end are a record/,
     'and what was cut off');
for my $who (sort keys %$before) {
    chat($who, 'error=queue');
    is(seen($who), $before->{$who}, "after a start: $who");
    is(balances()->{$who}, $before->{$who}, "by llm-ledger: $who");
}
is(chat('carol', 'tokens=1')->{status}, 200, 'it goes on');
is(seen('carol'), $before->{carol} - 1, 'behind what was cut off');

# nginx stopped: the journal is made short.

restart(sub {
    like(qx($ledger compact --state $state 2>&1), qr/ records became 4\n/,
         'compact');
});
is(scalar(split /\n/, $t->read_file('state')), 4, 'it is short');
$before->{carol}--;
for my $who (sort keys %$before) {
    chat($who, 'error=queue');
    is(seen($who), $before->{$who}, "compacted: $who");
}


# A full disk: what cannot be written is kept, and who has a balance waits.

SKIP: {
    skip 'no prlimit', 8 if system('prlimit --version >/dev/null 2>&1') != 0;

    credit('alice', 100);
    $t->config(conf(), workers => 1);
    $t->reload(drain => 1);
    $before = balances()->{alice};
    my ($worker) = $t->workers();
    my $limit = (-s $state) + 30;

    system("prlimit --pid $worker --fsize=$limit:") == 0 or die 'prlimit';
    is(chat('alice', 'tokens=1')->{status}, 200, 'a full disk: answered');
    is(balances()->{alice}, $before, 'not written');
    my $r = chat('alice', 'tokens=1');
    $t->error_ok($r, 503, 'no more until it is',
                 code => 'balance_unavailable');
    is($r->{headers}{'retry-after'}, 1, 'Retry-After');
    is(chat('dave', 'error=queue')->{status}, 503, 'all with a balance');
    system("prlimit --pid $worker --fsize=unlimited:") == 0 or die 'prlimit';
    ok($t->wait_for(sub { balances()->{alice} == $before - 1 }),
       'written once there is room');
    is(chat('alice', 'tokens=1')->{status}, 200, 'and it goes on');
    is(seen('alice'), $before - 2, 'charged once each');
    like(qx($ledger balance --state $state 2>&1), qr/: 1 damaged parts, 0 dup/,
         'what was written of it is passed over');
}


# Processes killed at any moment.  Each client notes the ids of the answers
# that it has seen to their end; whatever is killed, these are charged, each
# once, and so is no more than what was under way.

$t->config(conf(), workers => 2);
$t->reload(drain => 1);
credit('carol', 100000);

my ($clients, $rounds) = $ENV{LONG} ? (8, 60) : (5, 12);

sub client {
    my ($n, $until) = @_;
    my %done;

    while (time() < $until && !-e "$dir/stop") {
        my $c = eval { $t->connect() } or do { sleep 0.02; next };

        while (time() < $until && !-e "$dir/stop") {
            my $tokens = 1 + int rand 9;

            $t->send_request($c, 'POST', '/v1/chat/completions', {
                messages => [ { role => 'user', content =>
                                "script: tokens=$tokens delay=1" } ],
                stream => rand() < 0.5 ? $true : JSON::PP::false() },
                'x-api-key' => 'key of carol') or last;
            my $r = $t->read_response($c, limit => 10);
            last if $r->{error} || $r->{status} != 200;
            $done{ $r->{headers}{'x-request-id'} } = $tokens;
        }
    }
    open my $f, '>', "$dir/client.$n" or die $!;
    print $f map { "$_ $done{$_}\n" } sort keys %done;
    close $f or die $!;
}

my $charged = () = records('charge');
my $kills = 0;
my @pids = map {
    my $n = $_;
    my $pid = fork() // die "fork: $!";
    if ($pid == 0) {
        srand $n;
        client($n, time() + 120);
        POSIX::_exit(0);
    }
    $pid
} 1 .. $clients;

srand 1;
for my $round (1 .. $rounds) {
    sleep 0.05 + rand 0.25;

    if ($round % 4 == 0) {
        my @workers = $t->workers();
        kill 'KILL', $t->pid('nginx');
        kill 'KILL', @workers;
        $t->wait_for(sub { !$t->alive('nginx') });
        $t->wait_for(sub { !grep { kill 0, $_ } @workers });
        unlink "$dir/nginx.pid";
        $t->spawn('nginx', $t->nginx_cmd());
        $t->wait_for(sub { -s "$dir/nginx.pid"
                           && $t->listens($t->port('http')) }) or die 'start';
    } else {
        my ($worker) = grep { rand() < 0.5 } $t->workers();
        kill 'KILL', $worker // ($t->workers())[0];
    }
    $kills++;
}
sleep 0.2;
$t->write_file('stop', '');
waitpid $_, 0 for @pids;

my (%seen, %count, @wrong);
for my $n (1 .. $clients) {
    $t->read_file("client.$n") =~ /\n/ or next;
    %seen = (%seen, map { split / / } split /\n/, $t->read_file("client.$n"));
}
my @new = records('charge');
@new = @new[$charged .. $#new];
$count{ $_->{id} }++ for @new;
my %amount = map { $_->{id} => -$_->{amount} } @new;

cmp_ok(scalar keys %seen, '>', $rounds * 2, 'answers seen');
is(scalar(grep { !$count{$_} } keys %seen), 0, 'none of them is lost');
is(scalar(grep { $count{$_} > 1 } keys %count), 0, 'none is there twice');
is(scalar(grep { defined $amount{$_} && $amount{$_} != $seen{$_} }
          keys %seen), 0, 'each for what it cost');
my $unseen = grep { !exists $seen{$_} } keys %count;
cmp_ok($unseen, '<=', ($kills + 1) * $clients,
       'others are what was under way when something was killed');
note(scalar(keys %seen), " answers seen, $unseen others, $kills kills");

chat('carol', 'error=queue');
is(seen('carol'), balances()->{carol}, 'what nginx has summed up meanwhile');
restart();
chat('carol', 'error=queue');
is(seen('carol'), balances()->{carol}, 'and after a start');

$t->done(allow => qr/other"\ is\ not\ the\ journal|write\(\)|exited on signal 9|
                     shared\ memory\ zone|worker\ process\ \d+\ exited/x);
done_testing();
