package answercache

// Size is the number of bytes held.
func (c *Cache) Size() int64 { return c.size }
