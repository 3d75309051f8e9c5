#!/usr/bin/perl

# llm_price, llm_price_window and $llm_cost: exact costs of scripted counts,
# models, inheritance, hours in time zones, reload, bad arguments.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use POSIX qw/ strftime /;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ time /;

my $true = JSON::PP::true();

# Bad arguments, in `nginx -t`.

my $dry = Test::LLM->new();
my $dir = $dry->dir();
my $price = 'llm_price hit=1 miss=2 output=3';
my $window = 'llm_price_window 16:30-00:30';
my $percents = 'hit=1% miss=2% output=3%';
my $dollars = 'it must be a number of dollars up to 1000000 with at most 6 '
    . 'decimal places';
my $percent = 'it must be between 0% and 1000%';

$dry->write_file('text', "no zone\n");
system("head -c 200 /usr/share/zoneinfo/Europe/Berlin > $dir/cut") == 0
    or die 'head';

for my $case (
    [ 'llm_price;', qr/invalid number of arguments in "llm_price"/ ],
    [ 'llm_price hit=1 miss=2;', qr/"llm_price" must have "output" parameter/ ],
    [ 'llm_price miss=1 output=2;', qr/"llm_price" must have "hit" param/ ],
    [ "$price cached=1;", qr/invalid parameter "cached=1"/ ],
    [ "$price off;", qr/invalid parameter "off"/ ],
    [ "$price model=;", qr/invalid parameter "model="/ ],
    [ "$price hit=1;", qr/duplicate parameter "hit=1"/ ],
    (map { [ "llm_price miss=2 output=3 hit=$_;",
             qr/invalid price "hit=\Q$_\E", $dollars/ ] }
     qw/ x -1 1.2345678 1000001 1$ 0x1 1. .1 nan /),
    [ "$price; $price;", qr/duplicate price of model ""/ ],
    [ "$price model=a; $price model=a;", qr/duplicate price of model "a"/ ],
    [ "llm_price off; $price;", qr/"llm_price off" stands beside others/ ],
    [ "$price; llm_price off;", qr/"llm_price off" stands beside others/ ],
    [ 'llm_price_window;', qr/invalid number of arguments/ ],
    [ 'llm_price_window 16:30-00:30;',
      qr/"llm_price_window" must have a time zone/ ],
    [ "$window UTC;", qr/"llm_price_window" must have "hit" parameter/ ],
    (map { [ "llm_price_window $_ UTC $percents;",
             qr/invalid hours "\Q$_\E", they must be "HH:MM-HH:MM"/ ] }
     qw/ 16:30 24:00-01:00 1:00-2:00 10:00-10:00 10:00-11:60 on /),
    (map { [ "$window UTC miss=2% output=3% hit=$_;",
             qr/invalid percentage "hit=\Q$_\E", $percent/ ] }
     qw/ 1 -1% % x% 1001% 0.5% /),
    [ "$window Mars/Base $percents;",
      qr{open\(\) "/usr/share/zoneinfo/Mars/Base" failed \(2: No such file} ],
    [ "$window ../../../etc/passwd $percents;",
      qr{invalid time zone "../../../etc/passwd"} ],
    [ "$window '' $percents;", qr/invalid time zone ""/ ],
    [ "$window Europe $percents;",
      qr{"/usr/share/zoneinfo/Europe" is no time zone file} ],
    [ "$window $dir/text $percents;",
      qr{invalid time zone "$dir/text", "$dir/text": it is no time zone} ],
    [ "$window $dir/cut $percents;", qr{"$dir/cut": it is cut off} ],
    [ "$window UTC $percents hit=5%;", qr/duplicate parameter "hit=5%"/ ],
    [ "$window UTC $percents model=x;", qr/invalid parameter "model=x"/ ],
    [ "llm_price_window off; $window UTC $percents;",
      qr/"llm_price_window off" stands beside others/ ],
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $dry->config_test($conf);

    ok(!$ok, "refused: $conf");
    like($out, $want, "message: $conf");
}

my ($ok, $out) = $dry->config_test(<<"CONF");
    $price; $price model=a;
    llm_price hit=0 miss=1000000 output=0.000001 model=b;
    $window UTC $percents; $window Europe/Berlin $percents;
    $window /usr/share/zoneinfo/Asia/Kathmandu hit=0% miss=1000% output=100%;
    server { llm_price off; llm_price_window off; location / { $price; } }
CONF
ok($ok, 'all of it') or diag($out);


# Costs of scripted counts.  Zones with fixed offsets keep the test simple;
# daylight time is in tests/unit/test_ledger_zone.c.

my $t = Test::LLM->new();
my $now = time();

sub around {
    my ($offset, $from, $to) = @_;

    return join '-', map { strftime('%H:%M', gmtime($now + $offset * 3600
                                                    + $_ * 3600)) }
                     $from, $to;
}

my $here = around(0, -2, 2);                 # crosses midnight at times
my $there = around(0, 2, 5);
my $shanghai = around(8, -2, 2);
my $arizona = around(-7, -2, 2);

sub conf {
    my ($out) = @_;

    return <<"CONF";
    llm_engine e unix:%%SOCKET%%;
    llm_price hit=0.14 miss=0.55 output=$out;
    llm_price hit=1 miss=10 output=100 model=scripted-two;
    log_format cost '\$request_uri \$llm_cost';

    server {
        listen %%LISTEN%%;
        access_log logs/cost.log cost;

        location / { llm_pass e; }
        location /own/ {
            llm_price hit=0 miss=0.000001 output=1000000;
            llm_pass e;
        }
        location /other/ {
            llm_price hit=1 miss=1 output=1 model=none;
            llm_pass e;
        }
        location /free/ { llm_price off; llm_pass e; }
        location /denied/ { deny all; llm_pass e; }
        location /plain/ { return 204; }
    }
    server {
        listen %%LISTEN:win%%;
        access_log logs/cost.log cost;
        llm_price_window $here UTC hit=50% miss=25% output=200%;
        llm_price_window $here UTC hit=0% miss=0% output=0%;

        location / { llm_pass e; }
        location /there/ {
            llm_price_window $there UTC hit=0% miss=0% output=0%;
            llm_pass e;
        }
        location /shanghai/ {
            llm_price_window $there UTC hit=0% miss=0% output=0%;
            llm_price_window $shanghai Asia/Shanghai hit=100% miss=0% output=0%;
            llm_pass e;
        }
        location /arizona/ {
            llm_price_window $arizona America/Phoenix hit=0% miss=0% output=1%;
            llm_pass e;
        }
        location /off/ { llm_price_window off; llm_pass e; }
    }
CONF
}

$t->engine('scripted', '--model', 'scripted,scripted-two');
$t->nginx(conf('2.19'), workers => 2);

sub chat {
    my ($uri, $script, %body) = @_;
    my $port = delete $body{port};

    return $t->request('POST', "$uri/v1/chat/completions", {
        messages => [ { role => 'user', content => "script: $script" } ],
        %body }, port => $t->port($port // 'http'));
}

my $seen = 0;

sub cost_is {
    my ($want, $name) = @_;
    my @lines;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    $t->wait_for(sub {
        @lines = split /\n/, $t->read_file('logs/cost.log');
        @lines > $seen;
    });
    my ($got) = ($lines[$seen++] // 'nothing') =~ / (\S+)$/;
    is($got, $want, $name);
}

my $script = 'prompt_tokens=1000 cached=400 tokens=50';

is(chat('', $script)->{status}, 200, 'an answer');
cost_is('0.0004955', '400 hit, 600 miss, 50 output');
chat('', $script, stream => $true);
cost_is('0.0004955', 'a stream');
chat('', "$script reasoning=10");
cost_is('0.0005174', 'reasoning is output');
chat('', $script, model => 'scripted-two');
cost_is('0.0114', "a model's own price");
chat('', 'prompt_tokens=7 cached=7 tokens=0');
cost_is('0.00000098', 'nothing but hits');
chat('/own', 'prompt_tokens=1499 cached=1000 tokens=0');
cost_is('0', '499 picodollars are nothing');
chat('/own', 'prompt_tokens=1500 cached=1000 tokens=0');
cost_is('0.000000001', '500 picodollars are a nanodollar');
chat('/own', 'prompt_tokens=1500 cached=1000 tokens=2');
cost_is('2.000000001', 'the largest price');
chat('/other', $script);
cost_is('-', 'a model without a price');
chat('/free', $script);
cost_is('-', 'llm_price off');
chat('', 'error=queue');
cost_is('0', 'refused by the engine');
is(chat('', "$script fail_after=10")->{status}, 500, 'the engine fails');
cost_is('0', 'an answer that failed');
chat('', "$script fail_after=0", stream => $true);
cost_is('0', 'a stream that failed before its first token');
like(chat('', "$script fail_after=10", stream => $true)->{body},
     qr/w10.*"error"/s, 'the engine fails in a stream');
cost_is('0.0004079', 'a stream that failed: what was given');
chat('', '', n => 0);
cost_is('0', 'a bad request');
chat('/denied', $script);
cost_is('0', 'denied');
$t->request('GET', '/plain/');
cost_is('-', 'another handler');

my @win = (port => 'win');
chat('', $script, @win);
cost_is('0.0003295', 'within the hours, the first window');
chat('/there', $script, @win);
cost_is('0.0004955', 'not within');
chat('/shanghai', $script, @win);
cost_is('0.000056', 'within the hours of Shanghai');
chat('/arizona', $script, @win);
cost_is('0.000001095', 'within the hours of Phoenix');
chat('/off', $script, @win);
cost_is('0.0004955', 'llm_price_window off');

# Who leaves pays for what was made.

my $c = $t->connect();
$t->send_request($c, 'POST', '/v1/chat/completions', {
    messages => [ { role => 'user', content =>
                    'script: prompt_tokens=100 tokens=1000 delay=20' } ],
    stream => $true });
$t->read_response($c, on_data => sub { $_[0] =~ /w3/ ? 'stop' : '' });
close $c->{sock};
my $line;
$t->wait_for(sub {
    $line = (split /\n/, $t->read_file('logs/cost.log'))[$seen];
});
my ($cost) = $line =~ / ([\d.]+)$/;
my $tokens = ($cost * 1e6 - 100 * 0.55) / 2.19;
ok($tokens >= 2.99 && $tokens < 500, 'who leaves pays what was made')
    or diag($line);
ok(abs($tokens - int($tokens + 0.5)) < 1e-6, 'whole tokens') or diag($line);
$seen++;

# A reload: the new prices; a bad one keeps the old.

$t->config(conf('x'), workers => 2);
kill 'HUP', $t->pid('nginx');
ok($t->wait_for(sub {
    $t->read_file('logs/error.log') =~ /invalid price "output=x"/;
}), 'a bad reload says so');
chat('', $script);
cost_is('0.0004955', 'and changes nothing');
$t->config(conf('0'), workers => 2);
$t->reload(drain => 1);
chat('', $script);
cost_is('0.000386', 'a reload changes prices');

$t->done(allow => qr/invalid price "output=x"/);
done_testing();
