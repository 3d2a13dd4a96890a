// As lookup.c, by Java's InetAddress, with its own cache off.
import java.net.InetAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.Security;
import java.util.Arrays;

class Lookup {
    public static void main(String[] arguments) throws Exception {
        Security.setProperty("networkaddress.cache.ttl", "0");
        Security.setProperty("networkaddress.cache.negative.ttl", "0");
        while (!Files.exists(Path.of(arguments[0]))) {
            for (String name : Arrays.copyOfRange(arguments, 1, arguments.length)) {
                long at = System.currentTimeMillis(), start = System.nanoTime();
                String address;
                try {
                    address = InetAddress.getByName(name).getHostAddress();
                } catch (Exception error) {
                    address = "error";
                }
                long took = (System.nanoTime() - start) / 1000;
                System.out.println(at + " " + name + " " + took + " " + address);
                Thread.sleep(20);
            }
        }
    }
}
