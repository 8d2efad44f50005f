// Runs a block's threads as fibers, one at a time: a fiber runs until it waits at a barrier or a shuffle.
#include "cuda_on_host.h"
#include "memory.h"
#include <algorithm>
#include <csetjmp>
#include <memory>
#include <ucontext.h>

struct Launch {
    const EmulatedKernel *kernels;      // ends with a null name
    const char *kernel;
    unsigned int grid[3], block[3];
    void **arguments;
    const Buffer *buffers;
    std::size_t buffer_count;
    // Of threads and blocks: 0 forward, 1 backward, else shuffled by it.
    unsigned int order;
};
struct Report {
    char wrong[400];                    // empty if nothing is
    uint64_t bytes_read, bytes_written;
};

extern "C" {
EmulatedPlace emulated_place;
extern char __start_emulated_shared[], __stop_emulated_shared[];
}

namespace {
constexpr std::size_t STACK = 64 << 10;
enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };
struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t start;
    jmp_buf resumed_at;
    bool has_begun;
    State state;
    unsigned int mask;
    int source;
    uint64_t value;
};

std::vector<Fiber> fibers;
std::vector<Region> regions;
std::string failure;
jmp_buf scheduler;
void (*entry)(void **);
void **arguments;
int running = -1;                       // the fiber; the scheduler's own accesses are not checked
Moment now;
Report *report;

Shared &shared() {
    static Shared all(__start_emulated_shared, __stop_emulated_shared);
    return all;
}

// A thread that fails never goes on, so that a wrong access does not happen.
void fail(const std::string &what) {
    const auto &block = emulated_place.block;
    if (failure.empty())
        failure = "block (" + std::to_string(block.x) + ", " + std::to_string(block.y) + "), thread " +
                  std::to_string(now.thread) + ": " + what;
    if (running >= 0) _longjmp(scheduler, 1);
}

void wait(State state) {
    Fiber &own = fibers[running];
    own.state = state;
    if (_setjmp(own.resumed_at) == 0) _longjmp(scheduler, 1);
}

void body() {
    entry(arguments);
    fibers[running].state = DONE;
    _longjmp(scheduler, 1);
}

// makecontext only gives a fiber its stack; later switches are jumps, which need no system call.
void resume(int index) {
    running = now.thread = index;
    emulated_place.thread = {(unsigned int)index, 0, 0};
    Fiber &fiber = fibers[index];
    if (_setjmp(scheduler) == 0) {
        if (fiber.has_begun) _longjmp(fiber.resumed_at, 1);
        fiber.has_begun = true;
        setcontext(&fiber.start);
    }
    running = -1;
}

// Answers the shuffle of the lanes of `mask`, once all of them wait there.
bool answer_shuffle(int warp, unsigned int mask) {
    const int count = std::min((int)fibers.size() - warp, 32);
    uint64_t values[32] = {};
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1u)) continue;
        if (lane >= count) return false;
        const Fiber &fiber = fibers[warp + lane];
        if (fiber.state != AT_SHUFFLE || fiber.mask != mask) return false;
        values[lane] = fiber.value;
    }
    for (int lane = 0; lane < count; lane++) {
        if (!(mask >> lane & 1u)) continue;
        Fiber &fiber = fibers[warp + lane];
        if (!(mask >> fiber.source & 1u)) fail("a shuffle from a lane outside its mask");
        fiber.value = values[fiber.source];
        fiber.state = READY;
    }
    return true;
}

// Wakes the threads whose wait is over. Returns false if none is.
bool wake() {
    bool any = false;
    for (std::size_t index = 0; index < fibers.size(); index++)
        if (fibers[index].state == AT_SHUFFLE) any |= answer_shuffle((int)index / 32 * 32, fibers[index].mask);
    const auto at_barrier = [](const Fiber &fiber) { return fiber.state == AT_BARRIER; };
    if (!std::all_of(fibers.begin(), fibers.end(), at_barrier)) return any;
    for (Fiber &fiber : fibers) fiber.state = READY;
    now.epoch++;
    return true;
}

void run_block(const std::vector<int> &order) {
    now.epoch++;
    shared().begin_block(now.epoch);
    for (Fiber &fiber : fibers) {
        fiber.has_begun = false;
        fiber.state = READY;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, body, 0);
    }
    const auto is_done = [](const Fiber &fiber) { return fiber.state == DONE; };
    while (failure.empty()) {
        for (int index : order)
            if (fibers[index].state == READY && failure.empty()) resume(index);
        if (std::all_of(fibers.begin(), fibers.end(), is_done)) return;
        if (!wake()) fail("threads wait at a barrier or a shuffle that others never reach");
    }
}

std::vector<int> permutation(int count, unsigned int order, unsigned int salt) {
    std::vector<int> indices(count);
    for (int i = 0; i < count; i++) indices[i] = order == 1 ? count - 1 - i : i;
    if (order < 2) return indices;
    uint64_t state = order * 0x9e3779b97f4a7c15u + salt;
    for (int i = count - 1; i > 0; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(indices[i], indices[(state >> 33) % (i + 1)]);
    }
    return indices;
}

bool is_within(const char *address, const void *from, std::size_t size) {
    return address >= (const char *)from && address < (const char *)from + size;
}

void check(const void *address, std::size_t size, bool write) {
    if (running < 0) return;
    const char *from = (const char *)address;
    if (is_within(from, fibers[running].stack.get(), STACK) || is_within(from, &emulated_place, sizeof(emulated_place)))
        return;
    if ((uintptr_t)from % size != 0) return fail("an access of " + std::to_string(size) + " bytes that is not aligned");
    if (shared().holds(from)) {
        if (const char *wrong = shared().use(from, size, now, write)) fail(wrong);
        return;
    }
    const std::string words = (write ? "a write of " : "a read of ") + std::to_string(size) + " bytes";
    if (size < 4) return fail(words + ", where a thread should move at least 4");
    for (Region &region : regions) {
        if (!region.holds(from, size)) continue;
        (write ? report->bytes_written : report->bytes_read) += size;
        if (const char *wrong = region.use(from, size, now, write)) fail(wrong);
        return;
    }
    fail(words + " outside the launch's buffers");
}
}  // namespace

extern "C" {
void emulated_barrier() { wait(AT_BARRIER); }

uint64_t emulated_shuffle(unsigned int mask, uint64_t value, int source) {
    Fiber &own = fibers[running];
    if (!(mask >> (running % 32) & 1u)) fail("a shuffle by a lane outside its mask");
    own.mask = mask;
    own.value = value;
    own.source = source & 31;
    wait(AT_SHUFFLE);
    return own.value;
}

void emulated_launch(const Launch *launch, Report *result) {
    *result = {};
    report = result;
    failure.clear();
    entry = nullptr;
    for (const EmulatedKernel *kernel = launch->kernels; kernel->name; kernel++)
        if (!std::strcmp(kernel->name, launch->kernel)) entry = kernel->call;
    if (!entry) failure = "there is no such kernel";
    arguments = launch->arguments;
    regions.clear();
    for (std::size_t i = 0; i < launch->buffer_count; i++) regions.emplace_back(launch->buffers[i]);
    const unsigned int *grid = launch->grid, *block = launch->block;
    emulated_place.grid = {grid[0], grid[1], grid[2]};
    fibers.resize(block[0] * block[1] * block[2]);
    now = {0, 0, 0};
    for (int index : permutation((int)(grid[0] * grid[1] * grid[2]), launch->order, 0)) {
        if (!failure.empty()) break;
        emulated_place.block = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
        now.block = index;
        run_block(permutation((int)fibers.size(), launch->order, (unsigned int)index + 1));
    }
    for (const Region &region : regions)
        if (const std::size_t bytes = failure.empty() ? region.unwritten() : 0)
            failure = "the launch left " + std::to_string(bytes) + " bytes of a result unwritten";
    regions.clear();
    std::strncpy(result->wrong, failure.c_str(), sizeof(result->wrong) - 1);
}

// The hooks of -fsanitize=thread; no other runtime of it is in the program.
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
#define HOOKS(size)                                                                       \
    void __tsan_read##size(void *address) { check(address, size, false); }                \
    void __tsan_write##size(void *address) { check(address, size, true); }                \
    void __tsan_unaligned_read##size(void *address) { check(address, size, false); }      \
    void __tsan_unaligned_write##size(void *address) { check(address, size, true); }      \
    void __tsan_volatile_read##size(void *address) { check(address, size, false); }       \
    void __tsan_volatile_write##size(void *address) { check(address, size, true); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void *address, std::size_t size) { check(address, size, false); }
void __tsan_write_range(void *address, std::size_t size) { check(address, size, true); }

// The hook of -fsanitize=alignment, by the type that a pointer is read through.
struct Mismatch {
    const char *file;
    unsigned int line, column;
    const void *type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(Mismatch *where, uintptr_t) {
    if (running >= 0)
        fail("an access that is not aligned to " + std::to_string(1 << where->log_alignment) + " bytes, at line " +
             std::to_string(where->line) + " of " + where->file);
}
}
