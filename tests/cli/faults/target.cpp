// A process to capture: two threads and some pages of known content; with an argument, one writes.
//
// It prints the address of its area of eight pages, then answers each line with "awake".

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>

constexpr size_t PAGE = 4096, PAGES = 8;

int main(int count, char **) {
    auto *area = static_cast<volatile uint8_t *>(
        mmap(nullptr, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t at = 0; at < PAGES * PAGE; ++at) area[at] = uint8_t(at / PAGE * 7 + at % 251);
    bool writes = count > 1;
    std::thread([=] {
        timespec pause = {0, 200'000};
        while (writes) {
            for (size_t page = 0; page < PAGES; ++page) area[page * PAGE + 1] = uint8_t(page);
            nanosleep(&pause, nullptr);
        }
        for (;;) ::pause();
    }).detach();
    char line[64];
    int size = snprintf(line, sizeof line, "%lu\n", (unsigned long)area);
    if (write(1, line, size) != size) return 1;
    while (read(0, line, sizeof line) > 0)
        if (write(1, "awake\n", 6) != 6) return 1;
}
