#!/usr/bin/perl

# llm_ledger: the day's requests, tokens and revenue by account and model, as
# JSON and CSV, the same as llm-ledger report makes of the usage log; over two
# workers and reloads.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use Test::LLM;
use Test::More;

my $true = JSON::PP::true();

my $dry = Test::LLM->new();
for my $case (
    [ 'llm_ledger;', qr/"llm_ledger" directive is not allowed here/ ],
    [ 'server { llm_ledger; }', qr/"llm_ledger" directive is not allowed/ ],
    [ 'server { location / { llm_ledger on; } }',
      qr/invalid number of arguments in "llm_ledger"/ ],
    [ 'server { location / { llm_ledger; llm_ledger; } }',
      qr/"llm_ledger" directive is duplicate/ ],
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $dry->config_test($conf);

    ok(!$ok, "refused: $conf");
    like($out, $want, "message: $conf");
}

my $t = Test::LLM->new();
my $top = Test::LLM::top();

$t->write_file('accounts', join '', map {
    "account $_ " . ($_ eq 'bob' ? '' : "tier=$_-tier") . "\nkey $_ "
        . sha256_hex("key of $_") . "\n"
} qw/ alice bob carol /);
$t->write_file('state', '');
system("$t->{build}/llm-ledger credit --state " . $t->dir() . "/state alice 2 "
       . '>/dev/null') == 0 or die 'credit';

my $conf = <<"CONF";
    llm_engine e unix:%%SOCKET%%;
    llm_accounts accounts zone=accounts:1m state=state;
    include $top/nginx-conf/usage-log.conf;

    server {
        listen %%LISTEN%%;
        access_log logs/usage.log llm_usage;
        llm_price hit=1 miss=10 output=1000 model=scripted;
        llm_read_body on;

        location / { llm_pass e; }
        location = /ledger { access_log off; llm_ledger; }
        location = /plain { access_log off; return 204; }
    }
CONF

$t->engine('scripted', '--model', 'scripted,two');
$t->nginx($conf, workers => 2);

sub chat {
    my ($who, $script, %body) = @_;

    return $t->request('POST', '/v1/chat/completions', {
        messages => [ { role => 'user', content => "script: $script" } ],
        %body }, headers => { Authorization => "Bearer key of $who" });
}

sub day { $t->request('GET', '/ledger')->{json} // {} }

my $r = $t->request('GET', '/ledger');
is($r->{status}, 200, 'nothing yet');
is($r->{headers}{'content-type'}, 'application/json', 'its type');
is($r->{headers}{'cache-control'}, 'no-store', 'not to be kept');
is_deeply([ @{ $r->{json} }{qw/ requests accounts models /} ], [ 0, [], [] ],
          'no requests');

# Many requests, each on a connection of its own, so both workers get some.

ok($t->wait_for(sub { $t->workers() == 2 }), 'two workers');

for my $i (1 .. 30) {
    chat('alice', "prompt_tokens=$i cached=1 tokens=$i", stream => $true);
    chat('bob', "prompt_tokens=10 tokens=1 reasoning=$i");
    chat('bob', 'prompt_tokens=5 tokens=1', model => 'two');
}
chat('bob', '', n => 0);
chat('alice', 'error=queue');
chat('nobody', '');
$t->request('GET', '/v1/models', undef,
            headers => { 'x-api-key' => 'key of bob' });
$t->request('GET', '/plain');

# The usage log, added up by a program of its own, has the same.

my $log = $t->dir() . '/logs/usage.log';
my @lines;
$t->wait_for(sub {
    @lines = split /\n/, $t->read_file('logs/usage.log');
    @lines == 94;
});
is(scalar @lines, 94, 'lines of the usage log');
my $json = `grep -v '"rank":null,"model":"","status":200' $log | \\
            $t->{build}/llm-ledger report --format json`;
my $report = $t->decode($json);
my $day = day();

# GET models is in the log and not in the ledger.

is($report->{requests}, 94, 'the report: requests');
is($day->{requests}, 93, 'the day: requests');

my @same = qw/ failed_requests unpriced_requests input_tokens hit_tokens
               miss_tokens output_tokens reasoning_tokens revenue_usd /;

is("$day->{$_}", "$report->{$_}", "the day: $_") for @same;

for my $kind (qw/ accounts models /) {
    my %want = map { $_->{name} => $_ } @{ $report->{$kind} };
    my %got = map { $_->{name} => $_ } @{ $day->{$kind} };

    is(join(' ', sort keys %got), join(' ', sort keys %want), "the $kind");
    for my $name (sort keys %want) {
        is("$got{$name}{$_}", "$want{$name}{$_}", "$kind: '$name': $_")
            for @same;
    }
    my @revenue = map { $_->{revenue_usd} } @{ $day->{$kind} };
    is("@revenue", join(' ', sort { $b <=> $a } @revenue), "$kind: order");
}

my %tier = map { $_->{name} => $_ } @{ $report->{tiers} };
is($tier{'alice-tier'}{input_tokens}, 465, 'the log has tiers');

my %account = map { $_->{name} => $_ } @{ $day->{accounts} };
is($account{alice}{tier}, 'alice-tier', 'a tier');
is($account{bob}{tier}, '', 'no tier');
is($account{bob}{balance_usd}, undef, 'no balance');
my ($balance) = `$t->{build}/llm-ledger balance --state @{[ $t->dir() ]}/state`
    =~ /^alice (\S+)$/m;
is("$account{alice}{balance_usd}", $balance, 'a balance');
is($balance, 2 - $account{alice}{revenue_usd}, 'is what is left');

my @date = gmtime;
is($day->{date}, sprintf('%04d-%02d-%02d', $date[5] + 1900, $date[4] + 1,
                         $date[3]), 'the date');

# CSV

$r = $t->request('GET', '/ledger?format=csv');
is($r->{headers}{'content-type'}, 'text/csv; charset=utf-8', 'CSV');
my ($head, @rows) = split /\r\n/, $r->{body};
my @names = split /,/, $head;
for my $row (@rows) {
    my %f;
    @f{@names} = map { s/^"(.*)"$/$1/r } split /,/, $row, -1;
    my $want = $f{kind} eq 'total' ? $day
        : (grep { $_->{name} eq $f{name} } @{ $day->{"$f{kind}s"} })[0];
    is($f{$_} // '', $want->{$_} // '', "csv: $f{kind} '$f{name}': $_")
        for @same, ($f{kind} eq 'account' ? qw/ tier balance_usd / : ());
}
is(scalar @rows, 1 + @{ $day->{accounts} } + @{ $day->{models} }, 'all rows');
is($t->request('GET', '/ledger?format=xml')->{status}, 400, 'another format');
is($t->request('POST', '/ledger', {})->{status}, 405, 'another method');
my $size = length $t->request('GET', '/ledger')->{body};
is($t->request('HEAD', '/ledger')->{headers}{'content-length'}, $size,
   'HEAD');

# A reload keeps all of it.

$t->reload(drain => 1);
is_deeply(day(), $day, 'kept over a reload');
chat('carol', 'prompt_tokens=1 tokens=0');
$t->wait_for(sub { day()->{requests} == 94 });
is(day()->{requests}, 94, 'and goes on');

# A client that makes up names of models, and a server that takes them all, do
# not take the place of accounts.

my $many = Test::LLM->new();
$many->write_file('accounts', $t->read_file('accounts'));
$many->nginx(<<'CONF', workers => 2);
    access_log off;
    keepalive_requests 10000;
    llm_accounts accounts zone=accounts:1m;
    upstream any { server %%LISTEN:any%%; keepalive 4; }
    proxy_http_version 1.1;
    proxy_set_header Connection "";

    server {
        listen %%LISTEN%%;
        location / { llm_meter on; proxy_pass http://any; }
        location = /ledger { llm_ledger; }
    }
    server {
        listen %%LISTEN:any%%;
        keepalive_requests 10000;
        default_type application/json;
        location / {
            return 200 '{"usage":{"prompt_tokens":1,"completion_tokens":1}}';
        }
    }
CONF

my $conn = $many->connect();
my %got;

sub name {
    my ($who, $model) = @_;

    $got{$many->request('POST', '/v1/completions', { model => $model },
        conn => $conn, headers => { 'x-api-key' => "key of $who" })->{status}}
        ++;
}

name('alice', "made up $_") for 1 .. 6300;
name('bob', 'made up 1');
is_deeply(\%got, { 200 => 6301 }, 'made up names are served');

my $made = $many->request('GET', '/ledger')->{json};
my %of = map { my $k = $_; map { ("$k $_->{name}" => $_->{requests}) }
               @{ $made->{$k} } } qw/ accounts models /;
is($of{'accounts alice'}, 6300, 'who made them up is counted');
is($of{'accounts bob'}, 1, 'and so is who comes after');
is($of{'models made up 1'}, 2, 'the first names have a place');
cmp_ok($of{'models (others)'} // 0, '>', 3000, 'and the others one together');
$many->done();

$t->done();
done_testing();
