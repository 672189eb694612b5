
=head1 NAME

PeerLink - the bytes of a link between two nodes, for tests that play one of its ends

=head1 SYNOPSIS

  use PeerLink;

  my $bytes = PeerLink::frame(PeerLink::READ_PROBE, $body, 4);    # with magic, length and CRC
  my $link = PeerLink->open($node, from => 9);                    # as node 9: startup, CALL quorum.peer_stream(), COPY BOTH
  $link->write(PeerLink::message('d', $bytes));
  my ($type, $body) = $link->read_message(10);                    # within so many seconds; () at the end of the connection

  my $pid = PeerLink::listen_at($port, $reply);    # a process that takes every link that is opened to that port, and says that
  PeerLink::stop_listening($pid);                  # done at the end of the test in any case

=cut

package PeerLink;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(time);

# Types of frames, as message.h numbers them.
use constant { PREPARE => 3, READ_ANSWER => 12, READ_PROBE => 16 };

sub crc32c
{
	my ($bytes) = @_;
	my $crc = 0xFFFFFFFF;
	foreach my $byte (unpack('C*', $bytes))
	{
		$crc ^= $byte;
		$crc = ($crc & 1) ? ($crc >> 1) ^ 0x82F63B78 : $crc >> 1 foreach 1 .. 8;
	}
	return $crc ^ 0xFFFFFFFF;
}

sub frame
{
	my ($type, $rest, $version) = @_;
	my $bytes = pack('nCCN', 0x5150, $version || 2, $type, 8 + length($rest) + 4) . $rest;
	return $bytes . pack('N', crc32c($bytes));
}

# A message of the protocol between client and server.
sub message { my ($type, $body) = @_; return $type . pack('N', 4 + length($body)) . $body; }

# ---- as the end that opens the link ---------------------------------------------------------------------------------

sub connect_to
{
	my ($class, $node) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => $node->{peer_address}, PeerPort => $node->port) or die 'connecting to ' . $node->name . ": $!";
	my $self = bless { socket => $socket, received => '', last => '' }, $class;
	my $startup = pack('N', 196608) . "user\0quorum_link\0database\0postgres\0\0";
	$self->write(pack('N', 4 + length($startup)) . $startup);
	$self->await('Z');
	return $self;
}

# The CALL; returns what the server says against it, '' if the stream is up.
sub call
{
	my ($self, $cluster_id, $from, $to) = @_;
	$self->write(message('Q', "CALL quorum.peer_stream(3, '$cluster_id', $from, 'test', $to, '1', '1:1:0', '')\0"));
	return $self->await('[WZ]') eq 'W' ? '' : $self->{refusal};
}

# Whose cluster it is it says to whoever names another one.
sub open
{
	my ($class, $node, %params) = @_;
	my ($from, $to) = ($params{from}, $params{to} || 1);
	my $refusal = $class->connect_to($node)->call('1', $from, $to);
	my ($cluster_id) = $refusal =~ /this node \("[^"]*"\) to cluster ([0-9A-Fa-f]{16})/ or die "no cluster is named: $refusal";
	my $self = $class->connect_to($node);
	$refusal = $self->call($cluster_id, $from, $to);
	die 'no link to ' . $node->name . ": $refusal" if $refusal ne '';
	return $self;
}

sub write
{
	my ($self, $bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';
	syswrite($self->{socket}, $bytes);
	return;
}

# Type and body of the next message; () if the connection ends first.
sub read_message
{
	my ($self, $seconds) = @_;
	my $deadline = time + ($seconds || 30);
	for (;;)
	{
		my ($type, $length) = length($self->{received}) >= 5 ? unpack('aN', $self->{received}) : ();
		if (defined $length && length($self->{received}) > $length)
		{
			my $message = substr($self->{received}, 0, $length + 1, '');
			return ($type, substr($message, 5));
		}
		die 'nothing came from the server in time' unless IO::Select->new($self->{socket})->can_read($deadline - time);
		return () unless sysread($self->{socket}, $self->{received}, 65536, length($self->{received}));
	}
}

# Reads up to a message of a type that the pattern matches, and returns the type.
sub await
{
	my ($self, $pattern) = @_;
	$self->{refusal} = '';
	while (my ($type, $body) = $self->read_message)
	{
		$self->{refusal} = $body if $type eq 'E';
		return $type if $type =~ /^$pattern$/;
	}
	die "the server has closed the connection: $self->{refusal}";
}

# ---- as the end that it is opened to --------------------------------------------------------------------------------

my %listeners;

END { my $status = $?; stop_listening($_) foreach keys %listeners; $? = $status; }

# What a server says that takes the stream up; or refuses it, with an SQLSTATE.
sub taken_up { return message('1', '') . message('2', '') . message('n', '') . message('W', pack('Cn', 0, 0)); }

sub refused
{
	my ($sqlstate, $text) = @_;
	return message('1', '') . message('2', '') . message('E', "SERROR\0VERROR\0C$sqlstate\0M$text\0\0") . message('Z', 'I');
}

# As a server that trusts everybody, up to the CALL.
sub greet
{
	my ($client) = @_;
	my $packet;
	for (;;)
	{
		$client->read($packet, 4) == 4 or return 0;
		my $length = unpack('N', $packet);
		$client->read($packet, $length - 4) == $length - 4 or return 0;
		last if unpack('N', $packet) == 196608;
		$client->write('N');
		$client->flush;
	}
	$client->write(message('R', pack('N', 0)) . message('Z', 'I'));
	$client->flush;
	for (;;)
	{
		$client->read($packet, 5) == 5 or return 0;
		my ($type, $length) = unpack('aN', $packet);
		next if $length == 4 ? 0 : $client->read($packet, $length - 4) != $length - 4;
		last if $type eq 'S';
	}
	return 1;
}

# Says `reply` to each CALL, and then listens.
sub listen_at
{
	my ($port, $reply) = @_;
	my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 5, ReuseAddr => 1) or die "port $port: $!";
	my $pid = fork();
	die "fork: $!" if !defined $pid;
	if ($pid)
	{
		$server->close;
		return $listeners{$pid} = $pid;
	}
	$SIG{TERM} = 'DEFAULT';
	CORE::open(STDOUT, '>', '/dev/null');
	$SIG{PIPE} = 'IGNORE';
	while (my $client = $server->accept)
	{
		if (greet($client))
		{
			my $byte;
			$client->write($reply);
			$client->flush;
			1 while $client->read($byte, 1);
		}
		$client->close;
	}
	POSIX::_exit(0);
}

sub stop_listening
{
	my ($pid) = @_;
	delete $listeners{$pid};
	kill 'KILL', $pid;
	waitpid $pid, 0;
	return;
}

1;
