
=head1 NAME

QuorumCluster - a pg_quorum cluster of real instances for one test

=head1 SYNOPSIS

  use lib 'test/tap';
  use QuorumCluster;
  use Test::More;

  my $cluster = QuorumCluster->new(nodes => 3);      # n1, n2, n3: running, joined, all of them voters
  my $leader  = $cluster->wait_for_leader;           # a QuorumNode

  $leader->sql('CREATE TABLE t (id int PRIMARY KEY, v text)');
  $leader->sql("SELECT quorum.replicate('t')");
  $leader->sql("INSERT INTO t VALUES (1, 'a')");     # dies on an error
  $cluster->assert_same_digest('t');                 # waits until all have applied, compares every row

  my $result = ($cluster->followers)[0]->query("INSERT INTO t VALUES (2, 'b')", timeout => 5);
  is($result->{sqlstate}, '25006', 'a follower refuses');
  like($result->{stderr}, qr/HINT/);

  $leader->kill9;                                    # the postmaster; all => 1 for each of its processes
  $cluster->wait_for_leader(not => $leader);
  $leader->start;                                    # waits until what the crash left behind is gone

  $cluster->cleanup;                                 # done at the end of the test in any case
  done_testing();

With C<< namespaces => 1 >> each node lives in a network namespace of its own, and links can be cut:

  QuorumCluster->skip_all_without_namespaces;        # first; a clear reason, or a failure where CI demands them
  my $cluster = QuorumCluster->new(nodes => 3, namespaces => 1);
  $cluster->cut('n1', 'n2');                         # both ways
  $cluster->cut_one_way('n1', 'n3');                 # what n1 sends does not reach n3; n3 to n1 works
  $cluster->isolate('n1');                           # from all others
  $cluster->heal;                                    # everything

With C<< power_loss => 1 >> the power of nodes can be cut: what they have not synced is lost (PowerLoss.pm).

  my $cluster = QuorumCluster->new(nodes => 3, power_loss => 1);
  $leader->power_cut(keep => 'random', seed => 42);  # keep => 'none' is the default
  $cluster->power_cut([ $cluster->nodes ]);          # of all at the same moment
  $leader->{power_loss}->lie_about('/pg_wal/');      # its fsyncs of these files do nothing from now on
  $leader->start;

=head1 DESCRIPTION

The nodes are PostgreSQL::Test::Cluster objects of the subclass QuorumNode, so that everything of that class works on them.
C<tools/check-tap> sets the environment that these need and runs the tests as somebody who may run a server.

The test talks to the servers through Unix sockets, which neither a cut link nor a namespace touches. The servers talk to
each other through TCP, as the role quorum_link, which is a member of quorum_peer and nothing else; a joining node asks for
its membership as quorum_operator, a member of quorum_admin and nothing else.

Different from PostgreSQL::Test::Cluster: fsync is on, restart_after_crash is on (a crashed process is to be recovered from
without a hand), and statements are not logged.

=cut

package QuorumNode;

use strict;
use warnings;

use IPC::Run;
use POSIX qw(:sys_wait_h);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

our @ISA = ('PostgreSQL::Test::Cluster');

# Servers that a test killed are adopted by the test, which reaps them: a container's first process may not, and a
# postmaster refuses to start as long as its predecessor is even a zombie.
sub adopt_orphans
{
	my %prctl_number = (x86_64 => 157, aarch64 => 167);
	my $machine = (POSIX::uname())[4];
	my $set_child_subreaper = 36;
	syscall($prctl_number{$machine}, $set_child_subreaper, 1, 0, 0, 0) if $prctl_number{$machine};
	return;
}

sub process_state
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/stat") or return '';
	my $line = <$file>;
	return '' unless defined $line && $line =~ /^\d+ \(.*\) (\S) (\d+)/s;
	return wantarray ? ($1, $2) : $1;
}

# $node->processes: the postmaster's pid and those of its children, while it runs.
sub processes
{
	my ($self) = @_;
	my $postmaster = $self->{_pid};
	return () unless defined $postmaster;
	my @children;
	foreach my $pid (map { m{/proc/(\d+)$} } glob('/proc/[0-9]*'))
	{
		my ($state, $parent) = process_state($pid);
		push @children, $pid if $state && $parent == $postmaster;
	}
	return ($postmaster, @children);
}

# $node->worker_pid('consensus'): a background worker's pid, by its process title; undef if it does not run.
sub worker_pid
{
	my ($self, $worker) = @_;
	return $self->process_pid(qr/: quorum \Q$worker\E\b/);
}

# $node->process_pid(qr/checkpointer/): the first of its processes with such a title; undef if there is none.
sub process_pid
{
	my ($self, $pattern) = @_;
	my ($pid) = grep { process_title($_) =~ $pattern } $self->processes;
	return $pid;
}

sub process_title
{
	my ($pid) = @_;
	open(my $file, '<', "/proc/$pid/cmdline") or return '';
	my $title = <$file> // '';
	$title =~ s/[\s\0]+\z//;
	return $title;
}

# $node->init: like the parent's, for whatever locale the machine has, or has not.  Instead of running initdb for each node the data directory that check-tap has
# made is copied; so all nodes have one system identifier, like those that were made from one base backup.
sub init
{
	my ($self) = @_;
	my @options = ('--encoding=UTF8', '--locale=C');
	my $template = $ENV{QUORUM_DATA_TEMPLATE} or return $self->SUPER::init(extra => \@options);
	my $run = \&PostgreSQL::Test::Utils::system_or_bail;
	no warnings 'redefine';
	local *PostgreSQL::Test::Utils::system_or_bail = sub {
		my @command = @_;
		@command = ('cp', '-a', $template, $self->data_dir) if $command[0] eq 'initdb';
		return $run->(@command);
	};
	return $self->SUPER::init;
}

# $node->start(fail_ok => 1): like the parent's, in the node's namespace, and after a crash too.
sub start
{
	my ($self, %params) = @_;
	$self->wait_for_remains;
	BAIL_OUT('node "' . $self->name . '" is already running') if defined $self->{_pid};
	local %ENV = $self->_get_env(PGAPPNAME => undef);
	my @watched = $self->{power_loss} ? $self->{power_loss}->environment : ();
	my $status = PostgreSQL::Test::Utils::system_log(
		$self->in_namespace, @watched, 'pg_ctl', '-w', '-t', 60,
		'-D', $self->data_dir, '-l', $self->logfile,
		'-o', '--cluster-name=' . $self->name, 'start');
	$self->_update_pid($status == 0 ? 1 : -1);
	if ($status != 0 && !$params{fail_ok})
	{
		print PostgreSQL::Test::Utils::slurp_file($self->logfile);
		BAIL_OUT('could not start node "' . $self->name . '"');
	}
	return $status == 0;
}

sub restart
{
	my ($self) = @_;
	$self->stop('fast');
	return $self->start;
}

# $node->kill9: SIGKILL for the postmaster; its children notice and leave.  all => 1: for each of them as well.
sub kill9
{
	my ($self, %params) = @_;
	my @processes = $self->processes;
	return unless @processes;
	print '### Killing node "' . $self->name . "\" using signal 9\n";
	kill('KILL', $processes[0]);
	kill('KILL', @processes) if $params{all};
	push @{ $self->{remains} }, @processes;
	$self->{_pid} = undef;
	$self->{stopped_by_signal} = 0;
	return;
}

# $node->power_cut(keep => 'none' or 'random', seed => n): all its processes die at once, and what they had not synced is lost.  Also for a
# node that was stopped or killed before.
sub power_cut
{
	my ($self, %params) = @_;
	kill_at_once($self);
	return $self->lose_unsynced(%params);
}

# QuorumNode::kill_at_once(@nodes): kill -9 of every process of all these nodes, as near to the same moment as can be; none is born meanwhile.
sub kill_at_once
{
	my @nodes = grep { defined $_->{_pid} } @_;
	my %node_of = map { $_->{_pid} => $_ } @nodes;
	kill('STOP', keys %node_of);
	QuorumCluster::wait_until('the postmasters to stand still', sub { !grep { process_state($_) !~ /^[TZ]?\z/ } keys %node_of }, 30);
	my %remains = map { $_ => $node_of{$_} } keys %node_of;
	foreach my $pid (map { m{/proc/(\d+)$} } glob('/proc/[0-9]*'))
	{
		my ($state, $parent) = process_state($pid);
		$remains{$pid} = $node_of{$parent} if $state && $node_of{$parent};
	}
	kill('KILL', keys %remains);
	push @{ $remains{$_}{remains} }, $_ foreach keys %remains;
	foreach my $node (@nodes)
	{
		$node->{_pid} = undef;
		$node->{stopped_by_signal} = 0;
	}
	return;
}

sub lose_unsynced
{
	my ($self, %params) = @_;
	die $self->name . ' was not started with power_loss' unless $self->{power_loss};
	$self->wait_for_remains;
	my $done = $self->{power_loss}->cut(%params);
	print '### Power cut of node "' . $self->name . "\": $done\n";
	return $done;
}

# Waits until all processes of a killed instance are gone, and reaps those that the test has adopted.
sub wait_for_remains
{
	my ($self) = @_;
	my @remains = @{ delete $self->{remains} || [] };
	QuorumCluster::wait_until(
		'processes of ' . $self->name . ' to end',
		sub {
			waitpid($_, WNOHANG) foreach @remains;
			@remains = grep { process_state($_) } @remains;
			return !@remains;
		},
		30);
	return;
}

# $node->sigstop, $node->sigcont: the whole instance stands still, as on a machine that hangs; its sockets stay open.
sub sigstop
{
	my ($self) = @_;
	my ($postmaster) = $self->processes;
	kill('STOP', $postmaster);    # first, so that it starts no more children
	kill('STOP', $self->processes);
	$self->{stopped_by_signal} = 1;
	return;
}

sub sigcont
{
	my ($self) = @_;
	kill('CONT', reverse $self->processes);
	$self->{stopped_by_signal} = 0;
	return;
}

# $node->without_apply(sub { ... }): meanwhile its apply worker stands still, as on a machine that is slow just now.
sub without_apply
{
	my ($self, $code) = @_;
	my $pid = $self->worker_pid('apply');
	kill('STOP', $pid);
	eval { $code->(); };
	my $error = $@;
	kill('CONT', $pid);
	die $error if $error;
	return;
}

sub is_running { my ($self) = @_; return defined $self->{_pid}; }

# Does it run, and not stand still?
sub is_awake { my ($self) = @_; return defined $self->{_pid} && !$self->{stopped_by_signal}; }

sub in_namespace
{
	my ($self) = @_;
	return () unless $self->{namespace_pid};
	return ('nsenter', "--net=/proc/$self->{namespace_pid}/ns/net");
}

# How the other nodes reach this one.
sub peer_conninfo
{
	my ($self, %params) = @_;
	my $user = $params{user} || 'quorum_link';
	my $dbname = $params{dbname} || 'postgres';
	return "host=$self->{peer_address} port=" . $self->port . " dbname=$dbname user=$user";
}

# $node->query($sql, timeout => seconds): { ok, rows, stderr, sqlstate, seconds, timed_out }; never dies for an error of SQL.
# sqlstate is that of the first error, '' if there was none; a connection that fails or breaks gives '08006'.
#
# The statements go to psql in a file: fed through a pipe they would break IPC::Run when psql ends because it can't connect.
sub query
{
	my ($self, $sql, %params) = @_;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/query.$$.sql";
	open(my $handle, '>', $file) or die "$file: $!";
	print $handle "$sql\n";
	close($handle);

	my ($stdout, $stderr, $timed_out, $status) = ('', '', 0, undef);
	my $timer = IPC::Run::timeout($params{timeout} || 30, exception => 'query timed out');
	my $started = time();
	eval {
		IPC::Run::run(
			[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose', '-f', $file,
				'-d', $self->connstr($params{dbname} || 'postgres') ],
			'<', '/dev/null', '>', \$stdout, '2>', \$stderr, $timer);
		$status = $?;
	};
	die $@ if $@ && $@ !~ /^query timed out/;
	$timed_out = 1 if $@;
	unlink($file);
	chomp($stdout, $stderr);

	my ($sqlstate) = $stderr =~ /(?:ERROR|FATAL|PANIC):\s+([0-9A-Z]{5}):/;
	my $ok = defined $status && $status == 0;
	$sqlstate = $ok ? '' : '08006' unless defined $sqlstate;
	return {
		ok => $ok,
		rows => $stdout,
		stderr => $stderr,
		sqlstate => $sqlstate,
		seconds => time() - $started,
		timed_out => $timed_out };
}

# $node->sql($sql): its output; dies on an error.
sub sql
{
	my ($self, $sql, %params) = @_;
	my $result = $self->query($sql, %params);
	die $self->name . ": $sql\nfailed: " . ($result->{timed_out} ? 'timed out' : $result->{stderr}) . "\n" unless $result->{ok};
	return $result->{rows};
}

# $node->status('role', 'leader_name', ...): columns of quorum.status, or an empty list if the node does not answer.
sub status
{
	my ($self, @columns) = @_;
	return () unless $self->is_awake;
	my $result = $self->query('SELECT ' . join(', ', @columns) . ' FROM quorum.status', timeout => 10);
	return () unless $result->{ok};
	my @values = split(/\|/, $result->{rows}, -1);
	return wantarray ? @values : $values[0];
}

# All rows of a table in the order of their text, as "count:md5".
sub digest
{
	my ($self, $table) = @_;
	return $self->sql(
		qq{SELECT count(*) || ':' || md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE "C"), '')) FROM $table AS t});
}

# $node->session: a psql that stays connected (PostgreSQL::Test::BackgroundPsql); errors don't end it.
sub session
{
	my ($self, %params) = @_;
	return $self->background_psql('postgres', on_error_stop => 0, %params);
}

package QuorumCluster;

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use PowerLoss;
use Test::More;
use Time::HiRes qw(time usleep);

my @clusters;

# QuorumCluster->new(%options)
#  nodes => 3			how many, or a list of names
#  namespaces => 0		a network namespace for each
#  power_loss => 0		what the nodes write is watched, so that power_cut can lose what they have not synced
#  form => 1			create the cluster on the first and let the others join; 0: only start instances with the extension
#  conf => ''			more lines for postgresql.conf
sub new
{
	my ($class, %options) = @_;
	my $names = $options{nodes} || 3;
	$names = [ map { "n$_" } 1 .. $names ] unless ref $names;
	my $self = bless { nodes => [], namespaces => $options{namespaces}, power_loss => $options{power_loss}, cuts => {} }, $class;
	push @clusters, $self;
	QuorumNode::adopt_orphans();

	$self->_make_hub if $self->{namespaces};
	$self->add_instance($_, conf => $options{conf}) foreach @$names;
	$self->form if !defined $options{form} || $options{form};
	return $self;
}

# Makes and starts one more instance that has the extension and the link role, and is no member of the cluster yet.
sub add_instance
{
	my ($self, $name, %options) = @_;
	my $node = QuorumNode->new($name);
	push @{ $self->{nodes} }, $node;
	$node->{peer_address} = '127.0.0.1';
	$self->_make_namespace($node) if $self->{namespaces};

	$node->init;
	$node->append_conf('postgresql.conf', <<"CONF");
shared_preload_libraries = 'pg_quorum'
quorum.database = 'postgres'
listen_addresses = '$node->{peer_address}'
fsync = on
restart_after_crash = on
wal_level = replica
shared_buffers = 32MB
log_statement = none
CONF
	$node->append_conf('postgresql.conf', $options{conf}) if $options{conf};
	$node->append_conf('pg_hba.conf', 'host all all 10.213.0.0/16 trust') if $self->{namespaces};
	$node->{power_loss} = PowerLoss->new(data_dir => $node->data_dir, log_dir => $node->basedir) if $self->{power_loss};
	$node->start;
	$node->sql('CREATE EXTENSION pg_quorum; CREATE ROLE quorum_link LOGIN IN ROLE quorum_peer;'
		. 'CREATE ROLE quorum_operator LOGIN IN ROLE quorum_admin');
	return $node;
}

# create_cluster on the first node, join_cluster on the others, and all of them voters.
sub form
{
	my ($self) = @_;
	my ($first, @others) = $self->nodes;
	$first->sql("SELECT quorum.create_cluster('" . $first->name . "', '" . $first->peer_conninfo . "')");
	$self->wait_for_leader(agreed_by => [$first]);
	$self->join_node($_, $first) foreach @others;
	$self->wait_for_leader;
	# A join returns when the joining node knows of it; the others hear of the last voter a moment later.
	foreach my $node ($self->nodes)
	{
		wait_until($node->name . ' to know all voters', sub { ($node->status('voters') // '') eq scalar($self->nodes) });
	}
	return;
}

sub join_node
{
	my ($self, $node, $via) = @_;
	$node->sql(
		"SELECT quorum.join_cluster('" . $node->name . "', '" . $node->peer_conninfo . "', via => '"
		  . $via->peer_conninfo(user => 'quorum_operator') . "')",
		timeout => 120);
	delete $node->{outside};
	return;
}

# ---- who is who -----------------------------------------------------------------------------------------------------

sub nodes { my ($self) = @_; return @{ $self->{nodes} }; }

sub node
{
	my ($self, $name) = @_;
	return $name if ref $name;
	my ($node) = grep { $_->name eq $name } $self->nodes;
	die "there is no node $name" unless $node;
	return $node;
}

# Those that take part: they run, do not stand still, and are not `outside` the cluster (a test may set that for an instance that is no
# member yet; join_node takes it away).
sub awake_nodes { my ($self) = @_; return grep { $_->is_awake && !$_->{outside} } $self->nodes; }

# The node that calls itself leader and has a quorum; undef if there is none right now.
sub leader
{
	my ($self) = @_;
	foreach my $node ($self->awake_nodes)
	{
		my ($role, $has_quorum) = $node->status('role', 'has_quorum');
		return $node if defined $role && $role eq 'leader' && $has_quorum eq 't';
	}
	return;
}

# Waits for a leader that all awake nodes (or those of `agreed_by`) name; not => $node: another one than that.
sub wait_for_leader
{
	my ($self, %params) = @_;
	my $leader;
	wait_until(
		'a leader',
		sub {
			$leader = $self->leader or return 0;
			return 0 if $params{not} && $leader == $self->node($params{not});
			my @asked = $params{agreed_by} ? map { $self->node($_) } @{ $params{agreed_by} } : $self->awake_nodes;
			foreach my $node (@asked)
			{
				my $named = $node->status('leader_name');
				return 0 unless defined $named && $named eq $leader->name;
			}
			return 1;
		},
		$params{timeout} || 60);
	return $leader;
}

sub followers
{
	my ($self) = @_;
	my $leader = $self->wait_for_leader;
	return grep { $_ != $leader } $self->awake_nodes;
}

# ---- the same everywhere --------------------------------------------------------------------------------------------

# Waits until the given nodes (default: all that are awake) have applied all that the leader knows to be chosen.
sub wait_applied
{
	my ($self, @nodes) = @_;
	@nodes = @nodes ? map { $self->node($_) } @nodes : $self->awake_nodes;
	my $leader = $self->wait_for_leader;
	my $chosen = $leader->sql('SELECT chosen_index FROM quorum.status');
	foreach my $node (@nodes)
	{
		wait_until(
			$node->name . " to apply up to $chosen",
			sub { my $applied = $node->status('applied_index'); return defined $applied && $applied ne '' && $applied >= $chosen; },
			120);
	}
	return $chosen;
}

# One test: every row of the table is the same on all awake nodes.
sub assert_same_digest
{
	my ($self, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->wait_applied;
	my %digests = map { $_->name => $_->digest($table) } $self->awake_nodes;
	my %different = map { $_ => 1 } values %digests;
	is(scalar(keys %different), 1, $name || "$table is the same on all nodes")
	  or diag(explain(\%digests));
	return;
}

# Tries the statement on whoever leads until it succeeds; returns the seconds that it took.  Only for statements that may be
# repeated after an error: a 08007 says that nobody knows whether the first attempt took effect.
sub write_until_ok
{
	my ($self, $sql, %params) = @_;
	my $started = time();
	my $last_error = '';
	wait_until(
		"success of $sql",
		sub {
			foreach my $node ($self->awake_nodes)
			{
				my $result = $node->query($sql, timeout => 10);
				return 1 if $result->{ok};
				$last_error = $node->name . ": $result->{stderr}";
			}
			return 0;
		},
		$params{timeout} || 60,
		sub { $last_error });
	return time() - $started;
}

# wait_until('what', sub { ... }, seconds): looks every 20 ms; dies after `seconds`, with what `explain` says.
sub wait_until
{
	my ($what, $condition, $timeout_seconds, $explain) = @_;
	my $deadline = time() + ($timeout_seconds || 60);
	until ($condition->())
	{
		die "timed out waiting for $what" . ($explain ? ': ' . $explain->() : '') . "\n" if time() > $deadline;
		usleep(20_000);
	}
	return 1;
}

# ---- namespaces and links -------------------------------------------------------------------------------------------

sub skip_all_without_namespaces
{
	return if ($ENV{QUORUM_NAMESPACES} || '') eq 'yes';
	my $reason = 'network namespaces need root, or sudo without a password, and CAP_SYS_ADMIN and CAP_NET_ADMIN';
	BAIL_OUT($reason) if $ENV{QUORUM_REQUIRE_NAMESPACES};
	plan(skip_all => $reason);
	return;
}

# A namespace lives as long as a process in it: a `cat` that reads from a pipe of this test, so that it goes with the test.
sub _hold_namespace
{
	my ($self) = @_;
	my ($input, $output) = ('', '');
	my $holder = IPC::Run::start([ 'unshare', '--net', 'sh', '-c', 'echo $$; exec cat >/dev/null' ], '<', \$input, '>', \$output);
	$holder->pump until $output =~ /^(\d+)\n/;
	my ($pid) = $output =~ /^(\d+)\n/;
	push @{ $self->{holders} }, { run => $holder, input => \$input, output => \$output };
	_run('nsenter', "--net=/proc/$pid/ns/net", 'ip', 'link', 'set', 'lo', 'up');
	return $pid;
}

sub _run
{
	my (@command) = @_;
	my ($output, $status) = ('', 0);
	IPC::Run::run(\@command, '<', '/dev/null', '>&', \$output) or die "@command failed: $output\n";
	return;
}

# All nodes' links meet at a bridge in a namespace that holds nothing else.
sub _make_hub
{
	my ($self) = @_;
	$self->{hub} = $self->_hold_namespace;
	my @in_hub = ('nsenter', "--net=/proc/$self->{hub}/ns/net");
	_run(@in_hub, 'ip', 'link', 'add', 'hub', 'type', 'bridge');
	_run(@in_hub, 'ip', 'link', 'set', 'hub', 'up');
	return;
}

sub _make_namespace
{
	my ($self, $node) = @_;
	my $number = scalar(@{ $self->{nodes} });
	my $pid = $self->_hold_namespace;
	my @in_hub = ('nsenter', "--net=/proc/$self->{hub}/ns/net");
	$node->{namespace_pid} = $pid;
	$node->{peer_address} = "10.213.0.$number";
	_run(@in_hub, 'ip', 'link', 'add', "port$number", 'type', 'veth', 'peer', 'name', 'eth0', 'netns', $pid);
	_run(@in_hub, 'ip', 'link', 'set', "port$number", 'master', 'hub', 'up');
	_run($node->in_namespace, 'ip', 'address', 'add', "$node->{peer_address}/24", 'dev', 'eth0');
	_run($node->in_namespace, 'ip', 'link', 'set', 'eth0', 'up');
	return;
}

# Packets are dropped where they arrive, silently: a sender sees no error, only that no answer comes.  Either end may be a list of nodes: all these
# links at one moment, however long a command takes to start.
sub cut_one_way
{
	my ($self, $from, $to) = @_;
	my %at;
	foreach my $receiver (map { $self->node($_) } ref $to eq 'ARRAY' ? @$to : $to)
	{
		$self->_note_cut($_, $receiver) foreach ref $from eq 'ARRAY' ? @$from : $from;
		$at{ $receiver->name } = $receiver;
	}
	$self->_apply_cuts(values %at);
	return;
}

sub cut
{
	my ($self, $one, $other) = @_;
	$self->_apply_cuts($self->_note_cut($one, $other), $self->_note_cut($other, $one));
	return;
}

# From all others, at one moment.
sub isolate
{
	my ($self, $node) = @_;
	$node = $self->node($node);
	my @others = grep { $_ != $node } $self->nodes;
	foreach my $other (@others)
	{
		$self->_note_cut($node, $other);
		$self->_note_cut($other, $node);
	}
	$self->_apply_cuts($node, @others);
	return;
}

sub heal
{
	my ($self) = @_;
	$self->{cuts} = {};
	$self->_apply_cuts($self->nodes);
	return;
}

# Returns the node at which the packets are to be dropped.
sub _note_cut
{
	my ($self, $from, $to) = @_;
	($from, $to) = ($self->node($from), $self->node($to));
	$self->{cuts}{ $to->name }{ $from->{peer_address} } = 1;
	return $to;
}

sub has_cuts { my ($self) = @_; return scalar(%{ $self->{cuts} }) ? 1 : 0; }

# All at the same time.
sub _apply_cuts
{
	my ($self, @nodes) = @_;
	my @runs;
	foreach my $node (@nodes)
	{
		my $rules = "table inet cuts {}\ndelete table inet cuts\ntable inet cuts {\n\tchain arriving {\n"
		  . "\t\ttype filter hook input priority 0; policy accept;\n";
		$rules .= "\t\tip saddr $_ drop\n" foreach sort keys %{ $self->{cuts}{ $node->name } || {} };
		$rules .= "\t}\n}\n";
		my $run = { rules => $rules, output => '' };
		$run->{run} = IPC::Run::start([ $node->in_namespace, 'nft', '-f', '-' ], '<', \$run->{rules}, '>&', \$run->{output});
		push @runs, $run;
	}
	foreach my $run (@runs)
	{
		$run->{run}->finish or die "nft failed: $run->{output}\n$run->{rules}";
	}
	return;
}

# ---- power ----------------------------------------------------------------------------------------------------------

# All these nodes lose power before any of them has come back; parameters as for a node's power_cut.
sub power_cut
{
	my ($self, $nodes, %params) = @_;
	my @victims = map { $self->node($_) } @$nodes;
	QuorumNode::kill_at_once(@victims);
	return map { $_->lose_unsynced(%params, seed => ($params{seed} || 0) + $_->port) } @victims;
}

# ---- the end --------------------------------------------------------------------------------------------------------

# Stops all instances and drops the namespaces.
sub cleanup
{
	my ($self) = @_;
	foreach my $node ($self->nodes)
	{
		$node->sigcont if $node->{stopped_by_signal};
		$node->stop('immediate', fail_ok => 1);
		$node->wait_for_remains;
	}
	foreach my $holder (@{ delete $self->{holders} || [] })
	{
		$holder->{run}->kill_kill;
	}
	@clusters = grep { $_ != $self } @clusters;
	return;
}

# Runs before the END block of PostgreSQL::Test::Cluster, which can't stop an instance that stands still.
END
{
	my $exit_code = $?;
	eval { $_->cleanup } foreach my @left = @clusters;
	diag($@) if $@;
	$? = $exit_code;
}

$SIG{INT} = $SIG{TERM} = sub { exit 1 };

# What a test died of belongs into its output; PostgreSQL::Test::Utils has sent stderr to the log.
$SIG{__DIE__} = sub { diag(substr($_[0], 0, 2000)) unless $^S; };

1;
