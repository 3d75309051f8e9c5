package Test::LLM;

# A real nginx with the module and an engine, in a temporary directory on free
# ports.  At the end both are stopped, and the error log must hold no alert,
# no emergency, no sanitizer report and no unexpected crash.
#
#   my $t = Test::LLM->new();
#   $t->engine('scripted', '--delay', 5);       # or 'real', model directory
#   $t->nginx(<<'CONF');                        # http context
#   llm_engine e unix:%%SOCKET%%;
#   server { listen %%LISTEN%%; location / { llm_pass e; } }
#   CONF
#   my $r = $t->request('POST', '/v1/completions', { prompt => 'x' });

use strict;
use warnings;

use Cwd qw/ abs_path /;
use File::Basename qw/ dirname /;
use File::Path qw/ make_path remove_tree /;
use File::Temp qw/ tempdir /;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use JSON::PP;
use POSIX qw/ WNOHANG /;
use Socket qw/ IPPROTO_TCP TCP_NODELAY /;
use Test::More;
use Time::HiRes qw/ sleep time /;

my $top = abs_path(dirname(__FILE__) . '/../../..');
my $json = JSON::PP->new->utf8->canonical->allow_nonref;

# nginx takes a variable of this name for sockets that it inherits.
my $nginx = delete $ENV{NGINX};

# A test that hangs ends, and what it had started with it.

$SIG{ALRM} = sub { die "$0: not done within its time limit\n" };
alarm($ENV{TEST_LIMIT} // 900);

# Each of nginx's binaries and modules has a table called ngx_modules, and its
# master frees nothing at its end.
$ENV{ASAN_OPTIONS} //= 'detect_odr_violation=0:detect_leaks=0';

sub new {
    my ($class, %opt) = @_;
    my $self = bless { pids => {}, ports => {}, owner => $$, %opt }, $class;

    $self->{build} = abs_path($ENV{BUILD} // "$top/build");
    $self->{dir} = tempdir('llm-t-XXXXXX', TMPDIR => 1, CLEANUP => 0);
    make_path(map { "$self->{dir}/$_" } qw/ logs run tmp /);

    return $self;
}

sub top { $top }
sub dir { $_[0]{dir} }
sub socket_path { $_[0]{dir} . '/run/' . ($_[1] // 'engine') . '.sock' }

# A free port, the same for the same name.

sub port {
    my ($self, $name) = @_;

    return $self->{ports}{$name} //= do {
        my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1',
                                      Proto => 'tcp') or die "port: $!";
        my $port = $s->sockport();
        close $s;
        $port;
    };
}

# Files

sub write_file {
    my ($self, $name, $text) = @_;
    my $path = $name =~ m{^/} ? $name : "$self->{dir}/$name";
    my $tmp = "$path.new";

    open my $f, '>', $tmp or die "$tmp: $!";
    print $f $text;
    close $f or die "$tmp: $!";
    rename $tmp, $path or die "$path: $!";

    return $path;
}

sub read_file {
    my ($self, $name) = @_;
    my $path = $name =~ m{^/} ? $name : "$self->{dir}/$name";

    open my $f, '<', $path or return '';
    local $/;
    my $text = <$f>;
    return $text // '';
}

sub expand {
    my ($self, $text) = @_;

    $text =~ s/%%SOCKET(?::(\w+))?%%/$self->socket_path($1)/ge;
    $text =~ s/%%LISTEN(?::(\w+))?%%/'127.0.0.1:' . $self->port($1 \/\/ 'http')/ge;
    $text =~ s/%%PORT(?::(\w+))?%%/$self->port($1 \/\/ 'http')/ge;
    $text =~ s/%%DIR%%/$self->{dir}/g;
    $text =~ s/%%TOP%%/$top/g;

    return $text;
}

# A self-signed certificate for 127.0.0.1; returns lines for a server block.

sub tls {
    my ($self) = @_;
    my ($crt, $key) = map { "$self->{dir}/tls.$_" } qw/ crt key /;

    if (!-e $crt) {
        system("openssl req -x509 -newkey rsa:2048 -nodes -days 2 "
               . "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 "
               . "-keyout $key -out $crt >/dev/null 2>&1") == 0
            or die "openssl failed";
    }

    return "ssl_certificate $crt; ssl_certificate_key $key;";
}

# Processes

sub spawn {
    my ($self, $name, @cmd) = @_;
    my $pid = fork() // die "fork: $!";

    if ($pid == 0) {
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', "$self->{dir}/logs/$name.out";
        open STDERR, '>>', "$self->{dir}/logs/$name.err";
        exec { $cmd[0] } @cmd or do {
            print STDERR "$cmd[0]: $!\n";
            POSIX::_exit(127);
        };
    }

    $self->{pids}{$name} = $pid;
    return $pid;
}

sub pid { $_[0]{pids}{$_[1]} }

sub alive {
    my ($self, $name) = @_;
    my $pid = $self->{pids}{$name} or return 0;

    my $ended = waitpid $pid, WNOHANG;
    my $status = $?;

    # One that is not a child of this process, a daemon, has no wait status.
    return 1 if $ended == 0
        || ($ended < 0 && length $self->read_file("/proc/$pid/cmdline"));
    $self->{status}{$name} = $status;
    delete $self->{pids}{$name};
    return 0;
}

# Ends a process and returns its wait status; after `limit` seconds by force.

sub stop {
    my ($self, $name, $signal, $limit) = @_;
    my $pid = $self->{pids}{$name} or return $self->{status}{$name};
    my $end = time() + ($limit // 20);

    kill $signal // 'TERM', $pid;
    while ($self->alive($name)) {
        if (time() > $end) {
            $self->{forced}{$name} = 1;
            kill 'KILL', $pid;
        }
        sleep 0.01;
    }

    return $self->{status}{$name};
}

# kind 'scripted': the model-less engine; 'real': llm-engine with a model.
# `name` tells several apart and names the socket.

sub engine {
    my ($self, $kind, @args) = @_;
    my $name = 'engine';

    if (ref $args[0]) {
        $name = (shift @args)->{name};
    }

    my $socket = $self->socket_path($name);
    my @cmd = $kind eq 'real'
        ? ("$self->{build}/llm-engine", 'serve', '--model', shift @args)
        : ("$self->{build}/tests/scripted_engine",
           '--log', "$self->{dir}/logs/$name.events");

    $self->spawn($name, @cmd, '--socket', $socket, @args);
    $self->wait_for(sub {
        die "$name did not start: " . $self->read_file("logs/$name.err")
            if !$self->alive($name);
        my $s = IO::Socket::UNIX->new(Peer => $socket) or return 0;
        close $s;
        return 1;
    }, 120) or die "$name does not listen";

    return $self;
}

sub events { $_[0]->read_file('logs/' . ($_[1] // 'engine') . '.events') }

# How often an event is in the scripted engine's log.

sub count {
    my ($self, $event, $name) = @_;

    return scalar(() = $self->events($name) =~ /^\Q$event\E .*\n/mg);
}

# The SUBMIT records that the scripted engine got, each as a hash of its log
# line's words; text is bytes again.

sub submits {
    my ($self, $name) = @_;

    return map {
        +{ map {
            my ($k, $v) = split /=/, $_, 2;
            $v =~ s/%([0-9A-F]{2})/chr hex $1/ge;
            $k => $v;
        } split / / }
    } $self->events($name) =~ /^submit (.*)\n/mg;
}

# The hash in that log.

sub fnv {
    my ($self, $bytes) = @_;
    my ($h, $prime) = (14695981039346656037, 1099511627776 + 435);
    use integer;

    $h = ($h ^ $_) * $prime for unpack 'C*', $bytes;
    return sprintf '%016x', $h;
}

sub nginx {
    my ($self, $http, %opt) = @_;

    $self->config($http, %opt);
    $self->spawn('nginx', $self->nginx_cmd());
    $self->wait_for(sub {
        die "nginx did not start: " . $self->read_file('logs/nginx.err')
            . $self->read_file('logs/error.log') if !$self->alive('nginx');
        return -s "$self->{dir}/nginx.pid"
            && $self->listens($self->port('http'))
            && $self->workers() >= $self->{workers};
    }, 60) or die 'nginx does not listen';

    return $self;
}

sub nginx_cmd {
    my ($self) = @_;
    my $bin = $nginx // (grep { -x } '/usr/sbin/nginx')[0] // 'nginx';
    my @wrap = split ' ', $ENV{NGINX_WRAP} // '';

    return (@wrap, $bin, '-p', "$self->{dir}/", '-c', 'nginx.conf',
            '-e', 'logs/error.log');
}

sub config {
    my ($self, $http, %opt) = @_;
    my $user = $> == 0 ? 'user root;' : '';

    # A new binary gets nothing else of the environment.
    my $env = ($ENV{NGINX_WRAP} // '') =~ /LD_PRELOAD/
        ? 'env LD_PRELOAD; env ASAN_OPTIONS;' : '';
    my $workers = $self->{workers} = $opt{workers} // 1;
    my $main = $opt{main} // '';
    my $level = $opt{log} // 'info';
    my $module = $ENV{MODULE} // "$self->{build}/ngx_http_llm_module.so";
    my $load = $ENV{MODULE_STATIC} ? '' : "load_module $module;";
    my $connections = $opt{connections} // 2048;

    $self->write_file('nginx.conf', $self->expand(<<"CONF" . $http . "\n}\n"));
$load
$user
$env
daemon off;
master_process on;
worker_processes $workers;
pid nginx.pid;
error_log logs/error.log $level;
$main
events { worker_connections $connections; }
http {
    access_log logs/access.log;
    client_body_temp_path tmp/body;
    proxy_temp_path tmp/proxy;
    fastcgi_temp_path tmp/fastcgi;
    uwsgi_temp_path tmp/uwsgi;
    scgi_temp_path tmp/scgi;
CONF
    return $self;
}

# nginx -t with a configuration: (ok, output).

sub config_test {
    my ($self, $http, %opt) = @_;

    $self->config($http, %opt);
    my $cmd = join ' ', map { "'$_'" } $self->nginx_cmd(), '-t';
    my $out = `$cmd 2>&1`;
    return ($? == 0, $out);
}

# Reloads and waits until the new workers are there and, if asked, until the
# old ones are gone.

sub reload {
    my ($self, %opt) = @_;
    my %old = map { $_ => 1 } $self->workers();

    kill 'HUP', $self->{pids}{nginx};
    $self->wait_for(sub {
        my @now = $self->workers();
        return 0 if (grep { !$old{$_} } @now) < $self->{workers};
        return 1 if !$opt{drain};
        return !grep { $old{$_} } @now;
    }, $opt{limit} // 60) or die 'reload did not finish';
}

sub workers {
    my ($self) = @_;
    my $master = $self->{pids}{nginx} or return ();
    open my $f, '<', "/proc/$master/task/$master/children" or return ();
    my $line = <$f> // '';

    return grep {
        my $cmd = $self->read_file("/proc/$_/cmdline");
        $cmd =~ /worker process|valgrind/
    } split ' ', $line;
}

sub listens {
    my ($self, $port) = @_;
    my $s = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") or return 0;
    close $s;
    return 1;
}

sub wait_for {
    my ($self, $check, $limit) = @_;
    my $end = time() + ($limit // 10);

    while (1) {
        my $r = $check->();
        return $r if $r;
        return 0 if time() > $end;
        sleep 0.02;
    }
}

# HTTP/1.1 by hand, so that every byte on the wire can be tested.
#
# connect() gives a connection; send_request() writes a request; read_response()
# returns { status, headers, body, chunks, closed }.  `on_data` sees the body
# as it comes and may return 'stop'.

sub connect {
    my ($self, $port) = @_;
    my $s = IO::Socket::INET->new(
        PeerAddr => '127.0.0.1:' . ($port // $self->port('http')),
        Timeout => 10) or die "connect: $!";

    setsockopt $s, IPPROTO_TCP, TCP_NODELAY, 1;
    return { sock => $s, buf => '' };
}

sub encode { ref $_[1] ? $json->encode($_[1]) : $_[1] // '' }
sub decode { my $v = eval { $json->decode($_[1]) }; $v }

sub send_request {
    my ($self, $c, $method, $uri, $body, %h) = @_;
    my $text = $self->encode($body);
    my $version = delete $h{':version'} // '1.1';
    my %head = (Host => 'localhost', %h);

    if (defined $body && !exists $head{'Transfer-Encoding'}) {
        $head{'Content-Type'} //= 'application/json';
        $head{'Content-Length'} //= length $text;
    }

    my $req = "$method $uri HTTP/$version\r\n"
        . join('', map { "$_: $head{$_}\r\n" }
               grep { defined $head{$_} } sort keys %head) . "\r\n" . $text;

    return $self->send_raw($c, $req);
}

sub send_raw {
    my ($self, $c, $data) = @_;
    local $SIG{PIPE} = 'IGNORE';

    while (length $data) {
        my $n = syswrite $c->{sock}, $data;
        return 0 if !defined $n;
        substr $data, 0, $n, '';
    }
    return 1;
}

sub fill {
    my ($self, $c, $end) = @_;
    my $left = $end - time();

    return -1 if $left <= 0;
    IO::Select->new($c->{sock})->can_read($left) or return -1;
    my $n = sysread $c->{sock}, $c->{buf}, 65536, length $c->{buf};
    return defined $n ? $n : 0;
}

sub read_response {
    my ($self, $c, %opt) = @_;
    my $end = time() + ($opt{limit} // 30);
    my $r = { body => '', chunks => [], headers => {}, start => time() };

    while ($c->{buf} !~ /\r\n\r\n/) {
        my $n = $self->fill($c, $end);
        return { %$r, status => 0, error => $n ? 'timeout' : 'closed' }
            if $n <= 0;
    }

    $c->{buf} =~ s/^(.*?)\r\n\r\n//s;
    my ($line, @head) = split /\r\n/, $1;
    ($r->{status}) = $line =~ m{^HTTP/1\.[01] (\d+)};
    $r->{head} = $line;
    for (@head) {
        my ($k, $v) = /^([^:]+):\s*(.*)$/ or next;
        $r->{headers}{lc $k} = defined $r->{headers}{lc $k}
            ? "$r->{headers}{lc $k}, $v" : $v;
    }
    $r->{header_time} = time();

    return $r if $opt{head} || $r->{status} =~ /^(1..|204|304)$/;

    my $more = sub {
        my ($data) = @_;
        return 0 if $data eq '';
        $r->{first} //= time();
        $r->{body} .= $data;
        push @{$r->{chunks}}, $data;
        return $opt{on_data} && ($opt{on_data}->($data, $r) // '') eq 'stop';
    };

    if (($r->{headers}{'transfer-encoding'} // '') =~ /chunked/) {
        while (1) {
            while ($c->{buf} !~ /^[0-9a-fA-F]+[^\r\n]*\r\n/) {
                my $n = $self->fill($c, $end);
                return { %$r, error => $n ? 'timeout' : 'closed' } if $n <= 0;
            }
            my ($size) = $c->{buf} =~ /^([0-9a-fA-F]+)/;
            $size = hex $size;
            $c->{buf} =~ s/^[^\n]*\n//;
            while (length $c->{buf} < $size + 2) {
                my $n = $self->fill($c, $end);
                return { %$r, error => $n ? 'timeout' : 'closed' } if $n <= 0;
            }
            my $data = substr $c->{buf}, 0, $size, '';
            substr $c->{buf}, 0, 2, '';
            last if $size == 0;
            return { %$r, stopped => 1 } if $more->($data);
        }

    } elsif (defined $r->{headers}{'content-length'}) {
        my $size = $r->{headers}{'content-length'};
        while (length $c->{buf} < $size) {
            my $n = $self->fill($c, $end);
            return { %$r, error => $n ? 'timeout' : 'closed' } if $n <= 0;
        }
        $more->(substr $c->{buf}, 0, $size, '');

    } else {
        while (1) {
            if (length $c->{buf}) {
                my $data = $c->{buf};
                $c->{buf} = '';
                return { %$r, stopped => 1 } if $more->($data);
            }
            my $n = $self->fill($c, $end);
            return { %$r, error => 'timeout' } if $n < 0;
            last if $n == 0;
        }
        $r->{closed} = 1;
    }

    $r->{end} = time();
    $r->{json} = $self->decode($r->{body})
        if ($r->{headers}{'content-type'} // '') =~ m{application/json};

    return $r;
}

sub request {
    my ($self, $method, $uri, $body, %opt) = @_;
    my %h = %{ $opt{headers} // {} };
    my $c = $opt{conn} // $self->connect($opt{port});

    $h{Connection} = 'close' if !$opt{conn};
    $self->send_request($c, $method, $uri, $body, %h);
    return $self->read_response($c, head => $method eq 'HEAD', %opt);
}

# HTTP/2 over TLS, by node (t/lib/h2.mjs): a list of results.  h2_start() runs
# the job beside the test, h2_finish() waits for it.

sub node {
    my $own = "$top/tests/node_modules/.bin/node";

    return -x $own ? $own : (grep { -x } map { "$_/node" }
                             split /:/, $ENV{PATH})[0];
}

sub h2 {
    my ($self, %job) = @_;

    return $self->h2_finish($self->h2_start(%job));
}

sub h2_start {
    my ($self, %job) = @_;

    $job{port} //= $self->port('https');
    my $path = $self->write_file('tmp/h2-' . ++$self->{jobs} . '.json',
                                 $json->encode(\%job));
    open my $f, '-|', node(), "$top/t/lib/h2.mjs", $path or die "node: $!";
    return $f;
}

sub h2_finish {
    my ($self, $f) = @_;

    local $/;
    my $out = <$f>;
    close $f;

    my @all = @{ $self->decode($out // '[]') // [] };
    utf8::encode($_->{text}) for grep { defined $_->{text} } @all;

    return @all;                     # bytes, as HTTP/1.1's body
}

# One test: a response, of either protocol, is an OpenAI error object with this
# status; `code` and `param` are compared if given, undef is null.

sub error_ok {
    my ($self, $r, $status, $name, %want) = @_;
    my $e = $r->{json} // $self->decode($r->{text} // $r->{body} // '');
    my @bad;

    local $Test::Builder::Level = $Test::Builder::Level + 1;

    push @bad, "status $r->{status}" if $r->{status} != $status;
    push @bad, 'type ' . ($r->{headers}{'content-type'} // 'none')
        if ($r->{headers}{'content-type'} // '') ne 'application/json';
    push @bad, 'no request id' if !$r->{headers}{'x-request-id'};

    if (ref $e ne 'HASH' || join(' ', keys %$e) ne 'error'
        || join(' ', sort keys %{ $e->{error} }) ne 'code message param type')
    {
        push @bad, 'not an error object: '
            . substr $r->{body} // $r->{text} // '', 0, 200;

    } else {
        $e = $e->{error};
        push @bad, 'no message' if !length($e->{message} // '');
        push @bad, 'no type' if !length($e->{type} // '');
        for (keys %want) {
            my ($is, $want) = map { $_ // 'null' } $e->{$_}, $want{$_};
            push @bad, "$_ is $is, not $want ($e->{message})" if $is ne $want;
        }
    }

    return is(join('; ', @bad), '', $name);
}

# Splits a body of server-sent events: the data lines decoded, '[DONE]' and
# comments as they are.

sub sse {
    my ($self, $body) = @_;
    my @out;

    for my $event (split /\n\n/, $body) {
        for my $line (split /\n/, $event) {
            if ($line =~ /^data: (.*)$/) {
                push @out, $1 eq '[DONE]' ? $1 : $self->decode($1) // "bad: $1";
            } else {
                push @out, $line;
            }
        }
    }
    return @out;
}

# The text of a streamed chat or completion.

sub sse_text {
    my ($self, $body) = @_;

    return join '', map {
        my $c = ref $_ ? $_->{choices}[0] : undef;
        $c ? $c->{delta}{content} // $c->{text} // '' : ''
    } $self->sse($body);
}

# The end: everything is stopped and the logs are read.

sub done {
    my ($self, %opt) = @_;

    if ($self->{pids}{nginx}) {
        $self->stop('nginx', 'QUIT', $opt{limit} // 30);
        ok(!$self->{forced}{nginx}, 'nginx ended by itself');
    }
    $self->stop($_) for keys %{ $self->{pids} };

    my $log = $self->read_file('logs/error.log');
    my @bad = grep { !$opt{allow} || !/$opt{allow}/ }
              $log =~ /^(.*\[(?:alert|emerg|crit)\].*)$/mg;
    is(join("\n", @bad), '', 'no alert in the error log');

    my @reports;
    for my $f (glob "$self->{dir}/logs/*.err $self->{dir}/logs/*.log") {
        push @reports, $self->read_file($f) =~
            /^(.*(?:Sanitizer|runtime error:|ERROR SUMMARY: [1-9]).*)$/mg;
    }
    is(join("\n", @reports), '', 'no sanitizer report');
    $self->{done} = 1;
}

sub DESTROY {
    my ($self) = @_;

    return if $$ != $self->{owner};
    local $?;
    for my $pid (values %{ $self->{pids} }) {
        kill 'KILL', $pid;
        waitpid $pid, 0;
    }
    if ($ENV{TEST_KEEP}) {
        diag("kept $self->{dir}");
    } else {
        remove_tree($self->{dir});
    }
}

1;
