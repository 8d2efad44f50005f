// The memory that a launch may use, and who used each word of it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

enum Access { READ = 0, WRITE = 1, UPDATE = 2 };

// As kontext_kernels::Buffer.
struct Buffer {
    const char *address;
    std::size_t bytes, counts[2], strides[2];
    int access;
};

// A thread of a block, and the time since the last barrier, which `epoch` counts over the whole launch.
struct Moment {
    int32_t block, thread;
    uint32_t epoch;
};

// Who used a word; -1 nobody, and of readers -2 several.
struct Word {
    int32_t write_block = -1, read_block = -1;
    int16_t write_thread = -1, read_thread = -1;
    uint32_t write_epoch = 0, read_epoch = 0;

    // Returns what is wrong with an access, null if nothing is. `blocks_meet`: other blocks use the same memory.
    const char *use(const Moment &now, bool write, bool blocks_meet);
};

// A buffer of a launch.
class Region {
  public:
    explicit Region(const Buffer &buffer);
    // Returns true if all bytes are the buffer's.
    bool holds(const char *from, std::size_t size) const;
    const char *use(const char *from, std::size_t size, const Moment &now, bool write);
    // Returns the bytes that the launch should have written and has not.
    std::size_t unwritten() const;

  private:
    Buffer buffer;
    std::size_t extent;
    std::vector<Word> words;
};

// The shared memory of a block.
class Shared {
  public:
    Shared(char *from, char *to) : from(from), to(to), words((to - from + 3) / 4) {}
    // Fills it with NaNs: nothing is left of another block.
    void begin_block(uint32_t epoch);
    bool holds(const char *address) const { return address >= from && address < to; }
    const char *use(const char *address, std::size_t size, const Moment &now, bool write);

  private:
    char *from, *to;
    uint32_t begun = 0;
    std::vector<Word> words;
};
