#!/usr/bin/perl

# Errors that nginx itself makes under llm_pass look like OpenAI's, unless
# error_page says otherwise; everywhere else they stay nginx's own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep /;

my $t = Test::LLM->new();

mkdir $t->dir() . '/html' or die "html: $!";
$t->write_file('html/custom.html', "custom page\n");
$t->engine('scripted');
$t->nginx(sprintf(<<'CONF', $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%%;
    llm_engine gone unix:%%%%DIR%%%%/run/none.sock;
    limit_req_zone $server_name zone=req:1m rate=1r/m;
    limit_req_zone $server_name zone=req2:1m rate=1r/m;
    limit_conn_zone $server_name zone=conn:1m;
    add_header X-Always yes always;

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s
        server_name s;
        client_max_body_size 10k;
        root %%%%DIR%%%%/html;

        location / { llm_pass e; }
        location /gone/ { llm_pass gone; }

        location /req/ { limit_req zone=req; llm_pass e; }
        location /req429/ {
            limit_req zone=req2;
            limit_req_status 429;
            llm_pass e;
        }
        location /conn/ {
            limit_conn        conn 1;
            limit_conn_status 429;
            llm_pass          e;
        }
        location /deny/ { deny all; llm_pass e; }
        location /auth401/ { auth_request /check401; llm_pass e; }
        location /auth403/ { auth_request /check403; llm_pass e; }
        location /auth500/ { auth_request /check404; llm_pass e; }
        location /auth/ { auth_request /check204; llm_pass e; }
        location /basic/ {
            auth_basic "realm";
            auth_basic_user_file %%%%DIR%%%%/html/custom.html;
            llm_pass e;
        }
        location /internal/ { internal; llm_pass e; }
        location /except/ { limit_except POST { deny all; } llm_pass e; }
        location /return402/ { return 402; llm_pass e; }
        location /return418/ { return 418; llm_pass e; }
        location /return503/ { return 503; llm_pass e; }
        location /returntext/ { return 403 "own text"; llm_pass e; }
        location /redirect/ { return 301 /elsewhere; llm_pass e; }
        location /close/ { return 444; llm_pass e; }

        location /page/ {
            deny all;
            error_page 403 /custom.html;
            llm_pass e;
        }
        location /page200/ {
            error_page 400 404 405 =200 /custom.html;
            llm_pass e;
        }
        location /page503/ { error_page 503 = @fallback; llm_pass gone; }
        location /pagellm/ { error_page 503 = @other; llm_pass gone; }
        location /pageurl/ {
            deny all;
            error_page 403 http://example.com/;
            llm_pass e;
        }
        location /code/ { deny all; error_page 403 =404 /none; llm_pass e; }
        location /intercept/ { error_page 429 /custom.html; llm_pass e; }
        location @fallback { return 200 "fallback"; }
        location @other { llm_pass e; }
        location = /custom.html { }

        location /html/ { deny all; }
        location = /check401 { return 401; }
        location = /check403 { return 403; }
        location = /check404 { return 404; }
        location = /check204 { return 204; }
    }
CONF

my $body = { prompt => 'script: tokens=2' };

sub post {
    my ($uri, $b, %opt) = @_;
    return $t->request('POST', $uri, $b // $body, %opt);
}

# Limits.

is(post('/req/completions')->{status}, 200, 'limit_req: the first');
my $r = post('/req/completions');
$t->error_ok($r, 503, 'limit_req', code => 'overloaded');
ok($r->{headers}{'retry-after'} >= 1, 'limit_req: Retry-After');
is($r->{headers}{'x-always'}, 'yes', 'limit_req: add_header');

is(post('/req429/completions')->{status}, 200, 'limit_req_status: the first');
$r = post('/req429/completions');
$t->error_ok($r, 429, 'limit_req_status', code => 'rate_limit_exceeded',
             type => 'rate_limit_error');
ok($r->{headers}{'retry-after'} >= 1, 'limit_req_status: Retry-After');

my $c = $t->connect();
$t->send_request($c, 'POST', '/conn/completions', {
    prompt => 'script: tokens=1000 delay=20', stream => JSON::PP::true(),
    max_tokens => 1000 });
is($t->read_response($c, head => 1)->{status}, 200, 'limit_conn: the first');
$t->error_ok(post('/conn/completions'), 429, 'limit_conn');
my ($h) = $t->h2(uri => '/conn/completions', body => $body);
$t->error_ok($h, 429, 'limit_conn, HTTP/2');
close $c->{sock};
ok($t->wait_for(sub { post('/conn/completions')->{status} == 200 }, 5),
   'limit_conn: freed by an abort');

# Access.

my @table = (
    [ '/deny/completions' => 403, type => 'permission_error' ],
    [ '/auth401/completions' => 401, type => 'authentication_error' ],
    [ '/auth403/completions' => 403, type => 'permission_error' ],
    [ '/auth500/completions' => 500, type => 'server_error' ],
    [ '/basic/completions' => 401, type => 'authentication_error' ],
    [ '/internal/completions' => 404, type => 'invalid_request_error' ],
    [ '/return402/completions' => 402, type => 'insufficient_quota' ],
    [ '/return503/completions' => 503, type => 'server_error' ],
    [ '/gone/completions' => 503, code => 'engine_unavailable' ],
    [ '/none' => 404, code => 'not_found' ],
    [ '/code/completions' => 404, type => 'invalid_request_error' ],
);

for (@table) {
    my ($uri, $status, %want) = @$_;
    $r = post($uri);
    $t->error_ok($r, $status, "$uri: $status", %want);
    is($r->{headers}{'x-always'}, 'yes', "$uri: add_header");
    is($r->{headers}{'content-length'}, length $r->{body}, "$uri: length");
}
$r = post('/return418/completions');
is($r->{status}, 418, 'an odd status');
is($r->{body}, '', 'an odd status has no page');
like(post('/basic/completions')->{headers}{'www-authenticate'}, qr/realm/,
     'auth_basic: its header');
is(post('/auth/completions')->{status}, 200, 'auth_request passes');
$t->error_ok($t->request('GET', '/except/completions'), 403, 'limit_except');
is(post('/except/completions')->{status}, 200, 'limit_except passes');
is(post('/returntext/completions')->{body}, 'own text', 'return with a text');
$r = post('/redirect/x');
is("$r->{status} $r->{headers}{'content-type'}", '301 text/html',
   'a redirect is none');
is(post('/close/x')->{status}, 0, 'return 444');

# Bodies.

$t->error_ok(post('/v1/completions', 'x' x 20000), 413, 'body too large');
$t->error_ok(post('/v1/completions', "zz\r\n", headers => {
    'Transfer-Encoding' => 'chunked' }), 400, 'a malformed chunk');
$t->error_ok($t->request('GET', '/v1/completions'), 405, 'method');

# Before a location is chosen nginx answers for itself, and lives.

for my $raw ("GET / HTTP/1.1\r\n\r\n", "GARBAGE\r\n\r\n",
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1"
             . "\r\n\r\n", "POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
             . "Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
             'GET /' . 'x' x 40000 . " HTTP/1.1\r\nHost: x\r\n\r\n",
             "GET / HTTP/1.1\r\nHost: x\r\nX: " . 'x' x 40000 . "\r\n\r\n",
             "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
             . "gzip\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\0\0\0\0\r\n\r\n")
{
    $c = $t->connect();
    $t->send_raw($c, $raw);
    $r = $t->read_response($c, limit => 10);
    ok($r->{status} >= 400 || $r->{error} || $r->{closed},
       'malformed: ' . substr($raw =~ s/[^ -~]+/./gr, 0, 40)
       . " ($r->{status})");
}

# HEAD has the headers alone.

$r = $t->request('HEAD', '/deny/completions');
is($r->{status}, 403, 'HEAD');
my $want = length post('/deny/completions')->{body};
is($r->{headers}{'content-length'}, $want, 'HEAD: length of the object');

# error_page decides.

$r = post('/page/completions');
is("$r->{status} $r->{body}", "403 custom page\n", 'error_page: a file');
$r = post('/page200/completions', { });
is("$r->{status} $r->{body}", "200 custom page\n", 'error_page: =200');
$r = $t->request('GET', '/page200/none');
is("$r->{status} $r->{body}", "200 custom page\n", 'error_page: of a 404');
$r = post('/page503/completions');
is("$r->{status} $r->{body}", '200 fallback', 'error_page: a location');
$r = post('/pagellm/v1/completions');
is($r->{json}{choices}[0]{text}, 'w1 w2', 'error_page: another engine');
$r = post('/pageurl/completions');
is($r->{status}, 302, 'error_page: elsewhere');
$r = post('/intercept/completions', { prompt => 'script: error=queue' });
is("$r->{status} $r->{body}", "429 custom page\n",
   "error_page: of the engine's error");

# Other locations keep their pages.

$r = post('/html/');
is($r->{status}, 403, 'another location');
like($r->{body}, qr/<html>/, 'another location: nginx\'s page');
is($r->{headers}{'content-type'}, 'text/html', 'another location: its type');
is($r->{headers}{'x-request-id'}, undef, 'another location: no request id');

# HTTP/2.

my @h = $t->h2(requests => [
    (map { { uri => $_->[0], body => $body } } @table),
    { uri => '/html/', method => 'GET' },
    { uri => '/page/completions', body => $body },
    { uri => '/v1/completions', body => 'x' x 20000 },
    { uri => '/deny/completions', method => 'HEAD' },
]);
for (@table) {
    my ($uri, $status, %want) = @$_;
    $t->error_ok(shift @h, $status, "HTTP/2, $uri: $status", %want);
}
like($h[0]{text}, qr/<html>/, 'HTTP/2: another location');
is($h[1]{text}, "custom page\n", 'HTTP/2: error_page');
$t->error_ok($h[2], 413, 'HTTP/2: body too large');
is("$h[3]{status} $h[3]{headers}{'content-length'} $h[3]{text}",
   "403 $want ", 'HTTP/2: HEAD');

$t->done();
done_testing();
