#include "memory.h"
#include <cstring>

const char *Word::use(const Moment &now, bool write, bool blocks_meet) {
    if (blocks_meet && write_block >= 0 && write_block != now.block)
        return "a race: another block wrote what this thread uses";
    if (blocks_meet && write && read_block != -1 && read_block != now.block)
        return "a race: another block reads what this thread writes";
    if (write_epoch == now.epoch && write_thread >= 0 && write_thread != now.thread)
        return "a race: another thread wrote, since the last barrier, what this thread uses";
    if (write && read_epoch == now.epoch && read_thread != -1 && read_thread != now.thread)
        return "a race: another thread reads, since the last barrier, what this thread writes";
    if (write) {
        write_block = now.block;
        write_thread = (int16_t)now.thread;
        write_epoch = now.epoch;
    } else {
        const bool is_first = read_epoch != now.epoch || read_thread == -1;
        read_thread = is_first || read_thread == now.thread ? (int16_t)now.thread : -2;
        read_epoch = now.epoch;
        read_block = read_block == -1 || read_block == now.block ? now.block : -2;
    }
    return nullptr;
}

Region::Region(const Buffer &buffer) : buffer(buffer), extent(buffer.bytes) {
    for (int axis = 0; axis < 2; axis++) extent += (buffer.counts[axis] - 1) * buffer.strides[axis];
    words.resize((extent + 3) / 4);
}

bool Region::holds(const char *from, std::size_t size) const {
    if (from < buffer.address || from + size > buffer.address + extent) return false;
    std::size_t offset = from - buffer.address;
    for (int axis = 0; axis < 2; axis++) {
        if (buffer.counts[axis] == 1) continue;
        const std::size_t index = offset / buffer.strides[axis];
        offset -= (index < buffer.counts[axis] ? index : buffer.counts[axis] - 1) * buffer.strides[axis];
    }
    return offset + size <= buffer.bytes;
}

const char *Region::use(const char *from, std::size_t size, const Moment &now, bool write) {
    if (write && buffer.access == READ) return "a write to a buffer that the launch reads";
    for (std::size_t at = from - buffer.address; at < (std::size_t)(from - buffer.address) + size; at += 4) {
        Word &word = words[at / 4];
        if (!write && buffer.access == WRITE && word.write_block == -1) return "a read of what was never written";
        if (const char *wrong = word.use(now, write, true)) return wrong;
    }
    return nullptr;
}

std::size_t Region::unwritten() const {
    if (buffer.access == READ) return 0;
    std::size_t count = 0;
    for (std::size_t outer = 0; outer < buffer.counts[0]; outer++)
        for (std::size_t inner = 0; inner < buffer.counts[1]; inner++) {
            const std::size_t start = outer * buffer.strides[0] + inner * buffer.strides[1];
            for (std::size_t at = 0; at < buffer.bytes; at += 4) count += words[(start + at) / 4].write_block == -1 ? 4 : 0;
        }
    return count;
}

void Shared::begin_block(uint32_t epoch) {
    begun = epoch;
    std::memset(from, 0xff, to - from);
}

const char *Shared::use(const char *address, std::size_t size, const Moment &now, bool write) {
    for (std::size_t at = address - from; at < (std::size_t)(address - from) + size; at += 4) {
        Word &word = words[at / 4];
        if (!write && word.write_epoch < begun) return "a read of shared memory that the block has not written";
        if (const char *wrong = word.use(now, write, false)) return wrong;
    }
    return nullptr;
}
