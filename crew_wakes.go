package kgroup

// Which hands of a crew are at work, which wait for something to do, and who wakes them.

import "time"

// over reports whether the lane is at its end. It may be sealed some time before it is closed.
func (c *crew) over() bool { return c.lane.closed.Load() || isClosed(c.lane.sealed) }

// giveWay gives the place of a hand to one that wants to go on, if there is any.
func (c *crew) giveWay() bool {
	if len(c.returning) == 0 {
		return false
	}
	close(c.returning[0])
	c.returning = c.returning[1:]
	return true
}

// park waits until there may be something to do.
func (c *crew) park() {
	c.parked++
	c.mu.Unlock()
	select {
	case <-c.lane.queue.wake:
	case <-c.bell:
	case <-c.lane.sealed:
	}
	c.mu.Lock()
	c.parked--
	c.active++
}

// ring gets another hand if there is something to do for it, or if nobody would notice when
// there is. But while the handler is quick, one hand does everything: to wake another takes
// longer.
func (c *crew) ring() {
	switch {
	case c.active >= c.workers || c.over():
	case c.pace.quick.Load():
		c.arm()
	case c.parked == 0:
		if len(c.hands)-c.resting < c.workers {
			c.hire()
		}
	case c.ready.len() > 0 && c.collector == nil, c.again.len() > 0, c.takes() && !c.lane.queue.listen():
		signal(c.bell)
	}
}

// crewAlarm is how often it is looked whether a quick handler is so still.
const crewAlarm = time.Millisecond

func (c *crew) arm() {
	if c.armed {
		return
	}
	c.armed, c.heard = true, c.beat
	if c.alarm == nil {
		c.alarm = time.AfterFunc(crewAlarm, c.alarmed)
	} else {
		c.alarm.Reset(crewAlarm)
	}
}

// alarmed looks whether a task was picked since the last time.
func (c *crew) alarmed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.active == 0 || c.over():
		c.armed = false
	case c.beat != c.heard:
		c.heard = c.beat
		c.alarm.Reset(crewAlarm)
	default:
		c.armed = false
		c.pace.slow()
		c.ring()
	}
}

// rest gives the hand's place to others while it waits for something; resume takes one
// again. Without a crew nobody else wants it.
func (h *hand) rest() {
	c := h.crew
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resting++
	if c.giveWay() {
		return
	}
	c.active--
	c.pace.slow()
	c.ring()
	if c.parked > 0 { // it may have been woken in vain when all places were taken
		signal(c.bell)
	}
}

func (h *hand) resume() {
	c := h.crew
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.active < c.workers {
		c.active++
	} else {
		place := make(chan struct{})
		c.returning = append(c.returning, place)
		c.mu.Unlock()
		select {
		case <-place:
		case <-c.lane.sealed: // it will end
		}
		c.mu.Lock()
	}
	c.resting--
	c.ring() // another message may wait now
}
