package wire

// Asking a broker whether it is alive, on a connection that has nothing else to do.

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Ping asks the broker at the other end of c for its protocol versions, which needs
// no right, and returns when it has answered: whatever it says, it is alive. The
// deadline of c bounds the wait.
func Ping(c net.Conn, clientID string) error {
	format := kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID))
	if _, err := c.Write(format.AppendRequest(nil, kmsg.NewPtrApiVersionsRequest(), 0)); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return err
	}
	n := int32(binary.BigEndian.Uint32(size[:]))
	if n < 0 || n > maxAnswer {
		return fmt.Errorf("it answers with a frame of %d bytes", n)
	}
	_, err := io.CopyN(io.Discard, c, int64(n))
	return err
}
