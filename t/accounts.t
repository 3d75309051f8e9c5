#!/usr/bin/perl

# llm_accounts: keys, 401s, $llm_account and $llm_tier wherever nginx takes a
# variable, the file's errors, reloads; llm-ledger key.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Digest::SHA qw/ sha256_hex /;
use JSON::PP;
use MIME::Base64;
use Test::LLM;
use Test::More;

my $true = JSON::PP::true();
my $t = Test::LLM->new();
my $dry = Test::LLM->new();
my $build = $t->{build};

# llm-ledger key

sub run {
    my ($cmd) = @_;
    my $out = `$cmd 2>&1`;
    return ($? >> 8, $out);
}

my ($rc, $out) = run("$build/llm-ledger key alice");
is($rc, 0, 'llm-ledger key');
my ($key) = $out =~ /^(sk-[A-Za-z0-9_-]{43})\n/m;
my ($line) = $out =~ /^(key alice [0-9a-f]{64})\n/m;
is($line, 'key alice ' . sha256_hex($key), 'the line is of the key');
my ($rc2, $out2) = run("$build/llm-ledger key alice");
unlike($out2, qr/\Q$key\E/, 'another one the next time');

for my $case ([ '"a b"', 'invalid name "a b"' ], [ '-x', 'invalid name "-x"' ],
              [ '""', 'invalid name ""' ], [ 'x' x 256, 'invalid name' ],
              [ '', 'Usage' ], [ 'a b', 'Usage' ])
{
    ($rc, $out) = run("$build/llm-ledger key $case->[0]");
    is($rc, 2, "llm-ledger key $case->[1]: status");
    like($out, qr/\Q$case->[1]\E/, "llm-ledger key $case->[1]");
}

($rc, $out) = run("$build/llm-ledger key --help");
ok($rc == 0 && $out =~ /key NAME/, 'llm-ledger key --help');

# Keys and requests

my %key = (alice => $key, bob => 'bobs key', carol => 'k' x 512);

my $file = <<"FILE";
# who may ask
account alice tier=paid
$line   # made above
\tkey  alice   ${\ sha256_hex('second')}\r
account bob
key bob ${\ uc sha256_hex($key{bob})}

key carol ${\ sha256_hex($key{carol})}
account carol tier=free
account dave tier=free
FILE

$t->write_file('accounts', $file);
$t->engine('scripted', '--model', 'tiny');

my $conf = <<'CONF';
    llm_engine e unix:%%SOCKET%%;
    llm_accounts %%DIR%%/accounts zone=accounts:1m;
    llm_prefix_zone zone=p:1m;
    log_format who '$uri|$llm_account|$llm_tier';

    map $llm_tier $class { paid 7; default -7; }
    map $llm_account $per_account { default $llm_account; }
    limit_req_zone $llm_account zone=req:1m rate=1r/m;
    limit_req_zone $free zone=free:1m rate=1r/m;
    limit_conn_zone $llm_account zone=conn:1m;
    map $llm_tier $free { free $llm_account; }
    geo $home { default 0; 127.0.0.0/8 1; }
    map $home:$llm_tier $denied { 1:free 1; default 0; }

    server {
        listen %%LISTEN%%;
        access_log logs/who.log who;

        location / { llm_pass e; llm_priority $class; llm_route prefix=p; }
        location /other { return 200 "[$llm_account,$llm_tier]"; }
        location /req/ { limit_req zone=req burst=1 nodelay;
                         limit_req_status 429; llm_pass e; }
        location /free/ { limit_req zone=free; limit_req_status 429;
                          llm_pass e; }
        location /conn/ { limit_conn conn 1; limit_conn_status 429;
                          llm_pass e; }
        location /any/ { satisfy any; allow 127.0.0.1; deny all; llm_pass e; }
        location /none/ { satisfy any; deny all; llm_pass e; }
        location /all/ { deny all; llm_pass e; }
        location /geo/ { if ($denied) { return 403; } llm_pass e; }
        location /auth/ { auth_request /check; llm_pass e; }
        location = /check { internal; if ($llm_account = bob) { return 403; }
                            return 204; }
        location /if/ { if ($llm_tier = paid) { return 200 "paid\n"; }
                        llm_pass e; }
        location /page/ { error_page 401 = /sorry; llm_pass e; }
        location = /sorry { return 402 "sorry\n"; }
        location /key/ { llm_read_body on;
                         add_header X-Key "$llm_prefix_key"; llm_pass e; }
    }
CONF

$t->nginx($conf, workers => 2);

my $chat = '/v1/chat/completions';

sub ask {
    my ($uri, $headers, %body) = @_;

    return $t->request('POST', $uri, { messages => [ {
        role => 'user', content => 'script: tokens=2' } ], %body },
        headers => $headers // {});
}

sub bearer { return { Authorization => "Bearer $_[0]" } }

sub error_is {
    my ($r, $status, $type, $code, $what) = @_;
    my $e = ref $r->{json} ? $r->{json}{error} : {};

    is($r->{status} . ' ' . ($e->{type} // '') . ' ' . ($e->{code} // 'null'),
       "$status $type $code", $what);
    is(join(',', sort keys %$e), 'code,message,param,type',
       "$what: a whole error object");
}

sub refused {
    my ($r, $what, $message) = @_;

    error_is($r, 401, 'authentication_error', 'invalid_api_key', $what);
    is($r->{headers}{'www-authenticate'}, 'Bearer', "$what: challenge");
    like($r->{json}{error}{message}, $message // qr/is not known/,
         "$what: message");
}

is(ask($chat, bearer($key{$_}))->{status}, 200, "the key of $_")
    for sort keys %key;
is(ask($chat, bearer('second'))->{status}, 200, 'a second key');
is(ask($chat, { 'x-api-key' => $key{bob} })->{status}, 200, 'x-api-key');
is(ask($chat, { Authorization => "bEARER   $key{bob}  " })->{status}, 200,
   'Bearer in any case, spaces around the key');
is(ask($chat, { Authorization => 'Basic eDp5', 'x-api-key' => $key{bob} })
   ->{status}, 200, 'x-api-key beside another scheme');
is(ask($chat, { %{ bearer('wrong') }, 'x-api-key' => $key{bob} })->{status},
   401, 'Bearer goes before x-api-key');

refused(ask($chat), 'no key', qr/is required/);
refused(ask($chat, bearer('wrong')), 'an unknown key');
refused(ask($chat, bearer(lc $key)), 'a key in another case');
refused(ask($chat, bearer($key . 'x')), 'a key with more behind it');
refused(ask($chat, bearer(substr $key, 0, -1)), 'a key that was cut');
refused(ask($chat, bearer(sha256_hex($key))), 'the hash of a key');
refused(ask($chat, bearer('x' x 513)), 'too long a key', qr/is required/);
refused(ask($chat, { Authorization => 'Bearer' }), 'no key after Bearer',
        qr/is required/);
refused(ask($chat, { Authorization => 'Bearer  ' }), 'spaces after Bearer',
        qr/is required/);
refused(ask($chat, { Authorization => 'Basic ' . encode_base64("x:$key", '') }),
        'another scheme', qr/is required/);
refused(ask($chat, { 'x-api-key' => 'no' }), 'a wrong x-api-key');
refused($t->request('GET', '/v1/models'), 'models without a key',
        qr/is required/);
is($t->request('GET', '/v1/models', undef, headers => bearer($key{bob}))
   ->{status}, 200, 'models with a key');
refused(ask('/v1/nothing'), 'no endpoint and no key', qr/is required/);

# Where an account counts

is($t->request('GET', '/other', undef, headers => bearer($key))->{body},
   '[alice,paid]', 'variables in any location');
is($t->request('GET', '/other')->{body}, '[,]', 'variables without a key');
is($t->request('GET', '/other', undef, headers => bearer($key{bob}))->{body},
   '[bob,]', 'no tier');

my ($submit) = grep { $_->{priority} == 7 } $t->submits();
ok($submit, 'a class of requests by tier');

is(ask("/req$chat", bearer($key))->{status}, 200, 'limit_req: first');
is(ask("/req$chat", bearer($key))->{status}, 200, 'limit_req: second');
error_is(ask("/req$chat", bearer($key)), 429, 'rate_limit_error',
         'rate_limit_exceeded', 'limit_req: third');
error_is(ask("/req$chat", bearer('second')), 429, 'rate_limit_error',
         'rate_limit_exceeded', 'limit_req: another key of the account');
is(ask("/req$chat", bearer($key{bob}))->{status}, 200,
   'limit_req: another account');

is(ask("/free$chat", bearer($key))->{status}, 200, 'limit_req by tier: paid')
    for 1, 2;
is(ask("/free$chat", bearer($key{carol}))->{status}, 200,
   'limit_req by tier: free');
is(ask("/free$chat", bearer($key{carol}))->{status}, 429,
   'limit_req by tier: free again');

my $slow = $t->connect();
$t->send_request($slow, 'POST', "/conn$chat", { stream => $true, messages => [
    { role => 'user', content => 'script: tokens=1000 delay=20' } ] },
    %{ bearer($key{bob}) });
$t->read_response($slow, head => 1);
error_is(ask("/conn$chat", bearer($key{bob})), 429, 'rate_limit_error',
         'rate_limit_exceeded', 'limit_conn: a second one');
is(ask("/conn$chat", bearer($key{carol}))->{status}, 200,
   'limit_conn: another account');
close $slow->{sock};
ok($t->wait_for(sub { ask("/conn$chat", bearer($key{bob}))->{status} == 200 }),
   'limit_conn: after it');

is(ask("/any$chat")->{status}, 200, 'satisfy any: by address, without a key');
is(ask("/any$chat", bearer('wrong'))->{status}, 200,
   'satisfy any: by address, with a wrong key');
is(ask("/none$chat", bearer($key))->{status}, 200, 'satisfy any: by key');
refused(ask("/none$chat"), 'satisfy any: by nothing', qr/is required/);
error_is(ask("/all$chat", bearer($key)), 403, 'permission_error',
         'forbidden', 'deny all');
error_is(ask("/geo$chat", bearer($key{carol})), 403, 'permission_error',
         'forbidden', 'geo, map and if');
is(ask("/geo$chat", bearer($key))->{status}, 200, 'geo, map and if: paid');
is(ask("/auth$chat", bearer($key))->{status}, 200, 'auth_request');
error_is(ask("/auth$chat", bearer($key{bob})), 403, 'permission_error',
         'forbidden', 'auth_request sees the account');
is(ask("/if$chat", bearer($key))->{body}, "paid\n", 'if: tier');
is(ask("/if$chat", bearer($key{bob}))->{status}, 200, 'if: none');
my $r = ask("/page$chat");
is("$r->{status} $r->{body}", "402 sorry\n", 'error_page');

# Tenants: no account finds what another has computed.

sub tenant {
    my ($key, %body) = @_;
    my $n = () = $t->events() =~ /^submit /mg;

    ask($chat, bearer($key), %body);
    $t->wait_for(sub { (() = $t->events() =~ /^submit /mg) > $n });
    return ($t->submits())[-1]{tenant} // '';
}

is(tenant($key{alice}), "alice\0", 'tenant: the account');
is(tenant('second'), "alice\0", 'tenant: by another key');
is(tenant($key{bob}, user => 'u'), "bob\0u", 'tenant: account and user');

my %prefix;
for my $name (sort keys %key) {
    my $k = ask("/key$chat", bearer($key{$name}))->{headers}{'x-key'};
    like($k, qr/^[0-9a-f]{16}$/, "prefix key of $name");
    ok(!$prefix{$k}++, "prefix key of $name: its own");
}

# The log

ask("/v1/log/chat/completions", bearer($key));
ok($t->wait_for(sub {
    $t->read_file('logs/who.log') =~ m{^/v1/log/chat/completions\|alice\|paid$}m
}), 'logged');
like($t->read_file('logs/who.log'), qr{^/v1/chat/completions\|-\|-$}m,
     'logged: nobody');
unlike($t->read_file('logs/error.log'), qr/\Q$key\E|bobs key/,
       'no key in the error log');

# Reloads

$t->write_file('accounts', $file . "account erin\nkey erin "
               . sha256_hex('erins') . "\n");
is(ask($chat, bearer('erins'))->{status}, 401, 'before the reload');
$t->reload(drain => 1);
is(ask($chat, bearer('erins'))->{status}, 200, 'after the reload');

(my $less = $file) =~ s/^key bob.*\n//m;
$t->write_file('accounts', $less);
$t->reload(drain => 1);
refused(ask($chat, bearer($key{bob})), 'a key that was taken away');

$t->write_file('accounts', "account bob\nkey bob nothing\n");
my @before = $t->workers();
kill 'HUP', $t->pid('nginx');
ok($t->wait_for(sub {
    $t->read_file('logs/error.log') =~ /accounts:2: invalid key, it must be/
}), 'a bad file: its line and the reason');
is(join(' ', $t->workers()), join(' ', @before), 'a bad file: no reload');
is(ask($chat, bearer($key))->{status}, 200, 'a bad file: the old one counts');
$t->write_file('accounts', $file);

# Bad files

sub bad {
    my ($text, $message) = @_;

    $dry->write_file('bad', $text);
    my ($ok, $out) = $dry->config_test(
        'llm_accounts %%DIR%%/bad zone=a:1m;');
    ok(!$ok, "refused: $message");
    like($out, qr/llm_accounts: \S+\/bad:\Q$message\E/, "because: $message");
}

my $hash = sha256_hex('x');

bad("# x\n\nuser x\n", '3: a line must begin with "account" or "key"');
bad("account\n", '1: "account" needs a name');
bad("account -x\n", '1: invalid name "-x"');
bad("account a=b\n", '1: invalid name "a=b"');
bad('account ' . 'x' x 256 . "\n", '1: invalid name "x');
bad("account a tier\n", '1: invalid parameter "tier"');
bad("account a color=red\n", '1: unknown parameter "color"');
bad("account a tier=a tier=b\n", '1: duplicate parameter "tier"');
bad("account a tier=a,b\n", '1: invalid value "a,b" of "tier"');
bad("account a requests=$_\n", qq(1: invalid value "$_" of "requests"))
    for '', '0r/s', '5', '5r', '5t/s', '5r/h', '-5r/s', '1.5r/s',
        '1000000000001r/m', '99999999999999999999999r/m', 'r/s';
bad("account a tokens=$_\n", qq(1: invalid value "$_" of "tokens"))
    for '5r/s', '0t/m';
bad("account a tokens=5t/s tokens_burst=$_\n",
    qq(1: invalid value "$_" of "tokens_burst")) for '', '0', '5t', '-1';
bad("account a tokens=5t/s reserve=$_\n",
    qq(1: invalid value "$_" of "reserve")) for '', '0', 'all', 'fulll';
bad("account a concurrency=0\n", '1: invalid value "0" of "concurrency"');
bad("account a requests_burst=5\n", '1: "requests_burst" without "requests"');
bad("account a tokens_burst=5\n", '1: "tokens_burst" without "tokens"');
bad("account a reserve=5\n", '1: "reserve" without "tokens"');
bad("account a\naccount b\naccount a\n",
    '3: duplicate account "a", it is on line 1 as well');
bad("account a\nkey a\n", '2: "key" needs a name and a SHA-256');
bad("account a\nkey a $hash x\n", '2: "key" needs a name and a SHA-256');
bad("account a\nkey a sk-something\n", '2: invalid key, it must be');
bad("account a\nkey a ${\ substr $hash, 1}g\n", '2: invalid key, it must be');
bad("account a\nkey a $hash\nkey a $hash\n",
    '3: duplicate key, it is on line 2 as well');
bad("account a\nkey b $hash\n", '2: there is no account "b"');
bad("account a\nkey a\x01 $hash\n", '2: a byte that is not printable ASCII');
bad("account \xc3\xa9\n", '1: a byte that is not printable ASCII');
bad("account a\0b\n", '1: a byte that is not printable ASCII');
bad("account a" . " x=y" x 20 . "\n", '1: too many words');
bad('#' x 5000 . "\n", '1: a line of more than 4096 bytes');
unlike($dry->read_file('logs/error.log'), qr/sk-something/,
       'what may be a key is not repeated');

# Good files

sub good {
    my ($text, $what) = @_;

    $dry->write_file('good', $text);
    my ($ok, $out) = $dry->config_test('llm_accounts %%DIR%%/good zone=a:1m;');
    ok($ok, $what) or diag($out);
    return $out;
}

like(good('', 'an empty file'), qr/no key in ".*", nobody has access/,
     'an empty file: a warning');
good("account a", 'no end of line');
good("account a tokens_burst=9 tokens=5t/s reserve=full concurrency=3 "
     . "requests=1000000000000r/s requests_burst=1000000000000 tier=t\n",
     'every parameter');
good("key a $hash\naccount a\n", 'a key before its account');
good(join('', map { "account u$_\nkey u$_ " . sha256_hex($_) . "\n" }
                  1 .. 5000), 'many accounts');

# The directive

for my $case (
    [ 'llm_accounts %%DIR%%/good;', 'invalid number of arguments' ],
    [ 'llm_accounts %%DIR%%/none zone=a:1m;', 'open() "' ],
    [ 'llm_accounts %%DIR%% zone=a:1m;', '" is not a file' ],
    [ 'llm_accounts %%DIR%%/good zone=a;', 'invalid zone size "zone=a"' ],
    [ 'llm_accounts %%DIR%%/good zone=a:1k;', 'zone "zone=a:1k" is too small' ],
    [ 'llm_accounts %%DIR%%/good zon=a:1m;', 'invalid parameter "zon=a:1m"' ],
    [ 'llm_accounts %%DIR%%/good state=x;',
      '"llm_accounts" must have "zone" parameter' ],
    [ 'llm_accounts %%DIR%%/good zone=a:1m; llm_accounts x zone=b:1m;',
      '"llm_accounts" directive is duplicate' ],
    [ 'server { llm_accounts %%DIR%%/good zone=a:1m; }',
      '"llm_accounts" directive is not allowed here' ],
    [ 'limit_req_zone $uri zone=a:1m rate=1r/s;'
      . 'llm_accounts %%DIR%%/good zone=a:1m;', 'the shared memory zone "a" is '
      . 'already declared for a different use' ])
{
    my ($ok, $out) = $dry->config_test($case->[0]);
    ok(!$ok, "refused: $case->[1]");
    like($out, qr/\Q$case->[1]\E/, $case->[1]);
}

$dry->write_file('relative', "account a\n");
my ($ok, $err) = $dry->config_test('llm_accounts relative zone=a:1m;');
ok($ok, 'a relative path') or diag($err);

$t->done(allow => qr/llm_accounts: .*invalid key|accounts:2: invalid/);
done_testing();
