#!/usr/bin/perl

# llm_read_body: $llm_model and $llm_prefix_key in every phase from the
# rewrite on, before the module or a proxy serves the request; a cluster by
# hash of the key; llm_priority.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use JSON::PP;
use Test::LLM;
use Test::More;
use Time::HiRes qw/ sleep time /;

my $true = JSON::PP::true();
my $dry = Test::LLM->new();

for my $case (
    [ 'llm_read_body;', qr/invalid number of arguments/ ],
    [ 'llm_read_body x;', qr/invalid value "x" in "llm_read_body"/ ],
    [ 'llm_read_body on; llm_read_body off;', qr/is duplicate/ ],
    [ 'llm_priority;', qr/invalid number of arguments/ ],
    [ 'llm_priority 1; llm_priority 2;', qr/is duplicate/ ],
    [ 'llm_priority $nope;', qr/unknown "nope" variable/ ],
    (map { [ "llm_priority $_;",
             qr/invalid priority "\Q$_\E", it must be between -100 and 100/ ] }
     qw/ 101 -101 x 1.5 - --1 +1 99999999999999999999 /),
) {
    my ($conf, $want) = @$case;
    my ($ok, $out) = $dry->config_test($conf);

    ok(!$ok, "refused: $conf");
    like($out, $want, "message: $conf");
}

for my $conf ('llm_read_body on; llm_priority -100;',
              'server { llm_read_body off; llm_priority 100; location / {'
              . ' llm_read_body on; llm_priority $uri; } }')
{
    my ($ok, $out) = $dry->config_test($conf);
    ok($ok, "accepted: $conf") or diag $out;
}

my $t = Test::LLM->new();

$t->engine('scripted', '--model', 'org/tiny,big');
$t->nginx(sprintf(<<'CONF', $t->tls()));
    llm_engine e unix:%%%%SOCKET%%%%;
    llm_engine gone unix:%%%%DIR%%%%/run/none.sock;
    log_format early '$http_x_request_id $status [$llm_model]'
                     '[$llm_prefix_key]';
    access_log logs/early.log early;
    limit_req_zone $llm_model zone=m:1m rate=1r/m;
    limit_req_zone $llm_prefix_key zone=k:1m rate=1r/m;
    map $llm_model $banned { default 0; evil 1; }
    map $http_x_class $class { default 0; gold 7; bulk -5; odd x; }
    client_max_body_size 64k;
    client_body_buffer_size 16k;

    upstream nodes {
        hash $llm_prefix_key consistent;
        server %%%%LISTEN:n1%%%%;
        server %%%%LISTEN:n2%%%%;
        server %%%%LISTEN:n3%%%%;
    }

    server {
        listen %%%%LISTEN%%%%;
        listen %%%%LISTEN:https%%%% ssl http2;
        %s
        llm_read_body on;

        location /echo/ { return 200 "$llm_model|$llm_prefix_key"; }
        location /small/ { client_body_buffer_size 128;
                           client_max_body_size 0;
                           return 200 "$llm_model|$llm_prefix_key"; }
        location /off/ { llm_read_body off;
                         return 200 "$llm_model|$llm_prefix_key"; }
        location /if/ { set $x "<$llm_model>";
                        if ($banned) { return 403 "$x"; }
                        return 200 "$x"; }
        location /rewrite/ { if ($llm_model = big) { rewrite ^ /echo/x last; }
                             llm_pass e; }
        location /limit/ { limit_req zone=m; llm_pass e; }
        location /key/ { limit_req zone=k; limit_req_status 429; llm_pass e; }
        location /auth/ { auth_request /sub; add_header X-Auth $auth always;
                          auth_request_set $auth $upstream_http_x_sub;
                          llm_pass e; }
        location /sub { internal; proxy_pass_request_body off;
                        proxy_set_header Content-Length "";
                        proxy_set_header X-Model [$llm_model];
                        proxy_pass http://%%%%LISTEN:n1%%%%/model/; }
        location /gone/ { llm_pass gone; }
        location /nodes/ { proxy_pass http://nodes/; }
        location /stream/ { proxy_request_buffering off;
                            proxy_http_version 1.1;
                            proxy_pass http://nodes/; }
        location /dead/ { proxy_pass http://127.0.0.1:1/;
                          error_page 502 = @late; }
        location @late { proxy_pass http://nodes; }
        location /mirror/ { mirror /mirrored; llm_pass e; }
        location /mirrored { internal; proxy_pass http://%%%%LISTEN:n1%%%%/; }
        location / { llm_pass e; }
    }

    server {
        listen %%%%LISTEN:n1%%%%;
        listen %%%%LISTEN:n2%%%%;
        listen %%%%LISTEN:n3%%%%;
        add_header X-Node $server_port;
        client_max_body_size 0;
        llm_priority 3;

        location / { llm_pass e; }
        location /dead/ { llm_pass e; }
        location /model/ { add_header X-Sub $http_x_model; return 204; }
        location /zero/ { llm_pass e; llm_priority 0; }
        location /minus/ { llm_pass e; llm_priority -100; }
        location /class/ { llm_pass e; llm_priority $class; }
    }
CONF

my $chat = 'v1/chat/completions';

sub body {
    return { messages => [ map { { role => $$_[0], content => $$_[1] } } @_ ] };
}

sub echo {
    my ($body, %opt) = @_;
    my $r = $t->request($opt{method} // 'POST', $opt{uri} // '/echo/', $body,
                        headers => $opt{headers} // {});
    is($r->{status}, 200, 'echoed') or diag $r->{body};
    my ($model, $key) = split /\|/, $r->{body}, -1;
    return wantarray ? ($model, $key) : $key;
}

# The key: alike if prompts begin alike, for one user and model.

my @user = ([ 'system', 's' ], [ 'user', 'hello' ]);
my $k = echo(body(@user));
like($k, qr/^[0-9a-f]{16}$/, 'a key');
is(echo(body(@user)), $k, 'the same again');
is(echo({ %{ body(@user, [ 'assistant', 'a' ], [ 'user', 'b' ]) },
          temperature => 0.5, stream => $true }), $k, 'a later turn');

my %keys = ($k => 'first');
sub another {
    my ($what, $body) = @_;
    my $key = echo($body);

    like($key, qr/^[0-9a-f]{16}$/, "$what: a key");
    ok(!$keys{$key}, "$what: another key") or diag $keys{$key};
    $keys{$key} = $what;
    return $key;
}

another('another question', body([ 'system', 's' ], [ 'user', 'hallo' ]));
another('another system prompt', body([ 'system', 'z' ], [ 'user', 'hello' ]));
another('roles', body([ 'user', 'shello' ]));
another('another user', { %{ body(@user) }, user => 'u' });
another('another model', { %{ body(@user) }, model => 'u' });
another('user and model', { %{ body(@user) }, model => 'u', user => 'u' });
another('a tool message', body([ 'tool', 's' ], [ 'user', 'hello' ]));
is(echo({ %{ body(@user) }, user => '', model => '' }), $k, 'empty is none');
is(echo({ messages => [ { role => 'developer', content => 's' },
    { role => 'user', content => [ { type => 'text', text => 'hello' } ] } ] }),
   $k, 'developer, and content in parts');
is(echo({ messages => [ { role => 'system', content => 's', name => 'n' },
    { role => 'user', content => [
        { type => 'image_url', image_url => { url => 'data:...' } },
        { type => 'text', text => 'hello' } ] } ], tools => [ {} ],
    response_format => 5, suffix => [] }), $k, 'what the module would refuse');

my $p = another('a completion', { prompt => 'once upon' });
is(echo({ prompt => [ 'once upon', 'a time' ], max_tokens => 5 }), $p,
   'the first prompt of a list');
my $i = another('ids', { prompt => [ 1, 2, 3 ] });
is(echo({ prompt => [ [ 1, 2, 3 ], [ 4 ] ] }), $i, 'the first ids of a list');

# At most 4096 bytes of it: here two of roles, one, and 4093.

my $big = 'x' x 5000;
$k = another('a long question', body([ 'system', 's' ], [ 'user', $big ]));
substr $big, 4093, 1, 'y';
is(echo(body([ 'system', 's' ], [ 'user', $big ])), $k, 'beyond 4096 bytes');
substr $big, 4092, 1, 'y';
another('within 4096 bytes', body([ 'system', 's' ], [ 'user', $big ]));
my @many = map { [ 'assistant', "a$_" ] } 1 .. 1200;
$k = another('many messages', body(@many, [ 'user', 'x' ]));
is(echo(body(@many, [ 'user', 'z' ])), $k, 'not up to the first user');

# Bodies that say nothing.

for my $case ([ 'no JSON', 'x=1&y=2' ], [ 'an array', '[1]' ],
              [ 'cut', '{"model":"m"' ],
              [ 'bad UTF-8', "{\"model\":\"\xff\"}" ], [ 'twice',
              '{"model":"a","model":"b"}' ], [ 'empty', '' ],
              [ 'deep', '{"a":' . '[' x 100 . ']' x 100 . '}' ])
{
    is(join('|', echo($$case[1])), '|', "$$case[0]: no variables");
}

for my $case ([ 'types', { model => 5, messages => 'x', user => {} }, '|' ],
              [ 'no messages', { model => 'm', messages => [] }, 'm|' ],
              [ 'bad ids', { model => 'm', prompt => [ 1, 'x' ] }, 'm|' ],
              [ 'negative ids', { model => 'm', prompt => [ -1 ] }, 'm|' ],
              [ 'no prompt', { model => 'm' }, 'm|' ],
              [ 'a line feed', { model => "a\nb" }, '|' ],
              [ 'a carriage return', { model => "a\rX: y" }, '|' ],
              [ 'a long name', { model => 'm' x 512 }, '|' ],
              [ 'a name', { model => 'm' x 511 }, 'm' x 511 . '|' ],
              [ 'spaces', { model => " m \"q\" " }, ' m "q" |' ])
{
    is(join('|', echo($$case[1])), $$case[2], $$case[0]);
}

like(echo({ messages => [ 5, {}, { role => 7, content => {} } ] }),
     qr/^\w{16}$/, 'odd messages: some key');
is($t->request('GET', '/echo/')->{body}, '|', 'GET');
is($t->request('PUT', '/echo/', { model => 'm' })->{body}, '|', 'PUT');
is(join('|', echo({ model => 'm' }, uri => '/off/')), '|', 'off');

# However the body comes: in a file, in chunks, slowly, over HTTP/2.

my $file = { model => 'm', messages => [ { role => 'user',
             content => 'hello' x 20000 } ] };
is((echo($file, uri => '/small/'))[0], 'm', 'a body in a file');
$k = (echo($file, uri => '/small/'))[1];
my $json = $t->encode($file);

sub slowly {
    my (@parts) = @_;
    my $c = $t->connect();
    for (@parts) {
        $t->send_raw($c, $_);
        sleep 0.05;
    }
    return $t->read_response($c);
}

my $head = "POST /small/ HTTP/1.1\r\nHost: x\r\n";
my $chunk = sprintf "%x\r\n", length $json;
is(slowly("${head}Transfer-Encoding: chunked\r\n\r\n$chunk",
          substr($json, 0, 70000), substr($json, 70000), "\r\n0",
          "\r\n\r\n")->{body}, "m|$k", 'chunked');
my $length = 'Content-Length: ' . length($json) . "\r\n\r\n";
is(slowly($head . $length . substr($json, 0, 10), substr($json, 10, 50000),
          substr($json, 50010))->{body}, "m|$k", 'in pieces');

my $c = $t->connect();
$t->send_raw($c, "${head}Expect: 100-continue\r\n$length");
my $r = $t->read_response($c, head => 1);
is($r->{status}, 100, 'asked to continue');
$t->send_raw($c, $json);
is($t->read_response($c)->{body}, "m|$k", 'after 100');
$t->send_request($c, 'POST', '/echo/', { model => 'again' });
is($t->read_response($c)->{body}, 'again|', 'the connection goes on');

my $two = join '', map { "POST /echo/ HTTP/1.1\r\nHost: x\r\nContent-Length:"
                         . " 13\r\n\r\n{\"model\":\"$_\"}" } 'a', 'b';
$c = $t->connect();
$t->send_raw($c, $two);
is(join(' ', map { $t->read_response($c)->{body} } 1, 2), 'a| b|', 'pipelined');

my ($h) = $t->h2(uri => '/small/', body => $file);
is($h->{text}, "m|$k", 'HTTP/2');
my @h = $t->h2(requests => [
    map { { uri => '/echo/', body => { model => "m$_" } } } 1 .. 20 ]);
is(join(' ', map { $_->{text} } @h), join(' ', map { "m$_|" } 1 .. 20),
   'HTTP/2: many at once');

# Too large, broken off.

is($t->request('POST', "/$chat", 'x' x 70000)->{status}, 413, 'too large');
$t->error_ok(slowly("POST /$chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:"
                    . " chunked\r\n\r\n11170\r\n" . 'x' x 70000), 413,
             'too large, in chunks');
for (1 .. 5) {
    $c = $t->connect();
    $t->send_raw($c, "POST /$chat HTTP/1.1\r\nHost: x\r\nContent-Length: 900"
                     . "\r\n\r\n{");
    sleep 0.02;
    close $c->{sock};
}
@h = $t->h2(uri => "/nodes/$chat", streams => 5, abort_after => 1, body => {
    messages => [ { role => 'user',
                    content => 'script: tokens=100 delay=20' } ],
    stream => $true });

# The phases.

is($t->request('POST', '/if/', { model => 'good' })->{body}, '<good>', 'set');
is($t->request('POST', '/if/', { model => 'evil' })->{status}, 403,
   'if, through a map');
like($t->request('POST', '/rewrite/', { model => 'big' })->{body}, qr/^big\|/,
     'rewrite to another location');

my $say = body([ 'user', 'script: tokens=2' ]);
$r = $t->request('POST', "/rewrite/$chat", $say);
is($r->{json}{choices}[0]{message}{content}, 'w1 w2', 'served here');
is($t->request('POST', "/limit/$chat", { %$say, model => 'big' })->{status},
   200, 'limit_req by model: the first');
$t->error_ok($t->request('POST', "/limit/$chat", { %$say, model => 'big' },
                         headers => { 'X-Request-Id' => 'limited' }), 503,
             'limit_req by model: the second');
$r = $t->request('POST', "/limit/$chat", { %$say, model => 'org/tiny' });
is($r->{status}, 200, 'limit_req by model: another');
is($t->request('POST', "/key/$chat", $say)->{status}, 200, 'by key: the first');
$t->error_ok($t->request('POST', "/key/$chat", $say), 429,
             'by key: the second');
$r = $t->request('POST', "/auth/$chat", { %$say, model => 'big' });
is("$r->{status} $r->{headers}{'x-auth'}", '200 [big]',
   'auth_request: the subrequest knows');
$t->error_ok($t->request('POST', "/gone/$chat", { %$say, model => 'z' },
                         headers => { 'X-Request-Id' => 'gone' }), 503,
             'no engine');
$t->error_ok($t->request('POST', "/$chat", { %$say, model => 'nope' },
                         headers => { 'X-Request-Id' => 'unknown' }), 404,
             'an unknown model', param => 'model');
$t->error_ok($t->request('POST', "/$chat", '{'), 400, 'bad JSON');
$t->error_ok($t->request('GET', "/$chat"), 405, 'GET');
is($t->request('GET', '/v1/models')->{status}, 200, 'models');
is($t->request('POST', "/mirror/$chat", $say)->{status}, 200, 'mirror');
$r = $t->request('POST', "/$chat", { %$say, stream => $true });
is($t->sse_text($r->{body}), 'w1 w2', 'a stream');

my $log = '';
$t->wait_for(sub { $log = $t->read_file('logs/early.log');
                   $log =~ /^unknown/m });
like($log, qr/^limited 503 \[big\]\[\w{16}\]$/m, 'log: refused by a limit');
like($log, qr/^gone 503 \[z\]/m, 'log: no engine');
like($log, qr/^unknown 404 \[nope\]/m, 'log: unknown model');
like($log, qr/^- 200 \[org\/tiny\]/m, 'log: the model that served');

# A cluster: each conversation has its node.

my (%nodes, $moved, $whole);
for my $n (1 .. 24) {
    my @turns = ([ 'system', 'be brief' ], [ 'user', "script: tokens=$n" ]);
    my %seen;

    for my $turn (1 .. 3) {
        my $uri = $turn == 3 ? "/stream/$chat" : "/nodes/$chat";
        $r = $t->request('POST', $uri, { %{ body(@turns) }, max_tokens => 99 });
        $seen{$r->{headers}{'x-node'} // 'none'} = 1;
        $whole++ if ($r->{json}{choices}[0]{message}{content} // '') =~ /^w1\b/;
        push @turns, [ 'assistant', 'x' ], [ 'user', 'script: tokens=1' ];
    }
    $moved++ if keys %seen != 1;
    $nodes{$_}++ for keys %seen;
}
is($moved, undef, 'cluster: every conversation stays');
is($whole, 72, 'cluster: every answer came');
is(scalar keys %nodes, 3, 'cluster: all nodes are used');

($h) = $t->h2(uri => "/nodes/$chat", body => $say);
is($h->{status}, 200, 'cluster: HTTP/2');
my $n = $t->count('submit');
my $large = $t->encode(body([ 'user', 'y' x 60000 . "\nscript: tokens=1" ]));
is($t->request('POST', "/nodes/$chat", $large)->{status}, 200,
   'cluster: a body in a file');
is(($t->submits())[$n]->{'message0.hash'},
   $t->fnv('y' x 60000 . "\nscript: tokens=1"), 'cluster: all of it');
like($t->request('POST', "/dead/$chat", $say)->{headers}{'x-node'} // '',
     qr/^\d+$/, 'cluster: after error_page');

# Without llm_read_body the key is always empty, which a log tells.

my $hash = 'upstream u { server 127.0.0.1:1; hash $llm_prefix_key; }'
           . ' server { location / { proxy_pass http://u; %s } }';

for my $read ('', 'llm_read_body on;', 'llm_meter on;') {
    my ($ok, $out) = $dry->config_test(sprintf $hash, $read);
    ok($ok, "the key, $read: accepted") or diag $out;
    is($out =~ /\$llm_prefix_key" variable is always empty/ ? '' : 'none',
       $read ? 'none' : '', "the key, $read: warned of") or diag $out;
}

# Priorities.

sub priority {
    my ($uri, $class) = @_;
    my $r = $t->request('POST', "$uri$chat", $say, port => $t->port('n1'),
        headers => { defined $class ? ('X-Class' => $class) : () });
    is($r->{status}, 200, "priority: $uri answered");
    return ($t->submits())[-1]->{priority};
}

is(priority('/'), 3, 'priority: inherited');
is(priority('/zero/'), 0, 'priority: 0');
is(priority('/minus/'), -100, 'priority: below 0');
is(priority('/class/', 'gold'), 7, 'priority: a variable');
is(priority('/class/', 'bulk'), -5, 'priority: a variable below 0');
is(priority('/class/'), 0, 'priority: the default of a map');
is(priority('/class/', 'odd'), 0, 'priority: no number');
like($t->read_file('logs/error.log'), qr/invalid llm_priority "x", 0 is used/,
     'priority: no number, in the log');

$t->done();
done_testing();
